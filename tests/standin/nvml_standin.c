/* A stand-in for NVIDIA's libnvidia-ml.so.1 that replays a scenario, for machines without a GPU.
 *
 * It exports the symbols that nvidia-ml-py looks up and lays memory out as nvml.h does; it holds no NVIDIA code.
 * Build: gcc -shared -fPIC -o libnvidia-ml.so.1 nvml_standin.c
 * Use:   LD_LIBRARY_PATH=<its directory> NVML_STANDIN_SCENARIO=<file> python ...
 *
 * Scenario: one setting or more a line, in ascending order of time; '#' starts a comment.
 *
 *     SECONDS GPU KEY=VALUE [KEY=VALUE ...]
 *
 * SECONDS count from the first nvmlInit of the process; GPU is an index from 0, '*' for every GPU, or '-' for
 * what belongs to no GPU.  A value holds from its time on, until a later line of the same key replaces it.  Spaces
 * inside a value are written as '_'.  A recorded trace is simply a line per sample.
 *
 * Keys of '-':
 *     gpus=2                      how many there are (1)
 *     driver=580.65.06            driver version
 * Keys of a GPU, with what they are when never set:
 *     name=NVIDIA_H200  uuid=GPU-0000000N-0000-0000-0000-000000000000  serial=00000N  memory_mib=143771
 *     power_w=300                 true draw; the energy counter integrates it exactly
 *     reported_w=                 what the power sensor says instead (a stuck or wrong sensor)
 *     module_w=                   power in module scope; without it only the GPU's scope is there
 *     counter_mj=1000000000       sets the energy counter to this at that time (0: a reset); it counts on from there
 *     counter_scale=1             share of the true draw that the counter counts (0: frozen)
 *     counter_modulo_mj=0         the counter wraps at this; 0: never
 *     module_counter=0            1: the counter without a scope counts the module, as on Grace Hopper
 *     temperature_c=55  slowdown_c=90  shutdown_c=95
 *     clock_mhz=1980  max_clock_mhz=1980  memory_clock_mhz=3201  max_memory_clock_mhz=3201  application_clock_mhz=1980
 *     power_limit_w=700  enforced_power_limit_w=(power_limit_w)  default_power_limit_w=700  min_power_limit_w=200
 *     max_power_limit_w=700
 *     reasons=0                   clocks-event (throttle) reasons, nvml.h's bits, decimal or 0x
 *     pids=123,self               processes that compute on it (none); "self" is the one that asks
 *     utilization=90  memory_utilization=50  pstate=0  persistence=1  compute_mode=0  minor=N
 *     ecc=1  ecc_pending=(ecc)  mig=0  mig_pending=(mig)
 *     ecc.TYPE.COUNTER=0          TYPE corrected or uncorrected, COUNTER volatile or aggregate
 *     ecc.TYPE.COUNTER.LOCATION=0 LOCATION by nvml.h's number (0 L1, 1 L2, 2 device memory, ..., 7 SRAM)
 *     retired_pages=0  retired_pending=0  remapped_corrected=0  remapped_uncorrected=0  remap_pending=0
 *     remap_failed=0
 *     nvlinks=0                   links 0..nvlinks-1 are there
 *     nvlink.L.state=1  nvlink.L.error.C=0    of link L; counter C by nvml.h's number
 *     nvlink.L.remote=GPU         the GPU at the far end of link L; without it a switch
 *     island=N                    GPUs of one island reach each other over NVLink (P2P status); without it none
 *     compute_capability=9.0  numa=0          numa: the node of host memory next to it; -1: it does not say
 *     mig_instances=0             instances of a GPU whose mig is 1; each with mig.I.uuid, mig.I.name, mig.I.memory_mib
 *     pcie_generation=5  max_pcie_generation=5  pcie_width=16  max_pcie_width=16  pcie_replays=0
 *     field.ID=VALUE              any other field of nvmlDeviceGetFieldValues, whole number, by nvml.h's id
 * Faults, of a GPU or of '-':
 *     error.FUNCTION=CODE         the function fails: error.nvmlDeviceGetPowerUsage=3; CODE by nvml.h's number
 *     error.field.ID=CODE         that field fails inside nvmlDeviceGetFieldValues: error.field.186=3
 *     stall_until_s=T             every function that is given the GPU answers no sooner than at T
 *     error.all=CODE              every function that is given the GPU fails: 15 is a GPU lost; of '-': every
 *                                 function of the library, as when the driver vanishes (1, 9 or 999)
 *
 * What setters set, power_limit_w and locked_clock_mhz, is kept for all processes in the file SCENARIO.state, a line
 * "GPU KEY=VALUE" each, the last one counts; remove the file to reset.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };
enum { OF_NONE = -1, OF_ALL = -2 };
enum { FIELD_TOTAL_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186, FIELD_ENERGY = 191 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

typedef struct { double at_s; int gpu; char key[64]; char value[96]; } Setting;

static Setting *settings;
static size_t setting_count;
static double started_s;
static int users;

static double monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double elapsed_s(void) { return monotonic_s() - started_s; }

static void add(double at_s, int gpu, const char *pair) {
    const char *equals = strchr(pair, '=');
    if (!equals || (setting_count && settings[setting_count - 1].at_s > at_s)) {
        fprintf(stderr, "nvml stand-in: '%s' is not KEY=VALUE, or its time lies before the line above\n", pair);
        exit(70);
    }
    settings = realloc(settings, (setting_count + 1) * sizeof *settings);
    Setting *made = &settings[setting_count++];
    made->at_s = at_s;
    made->gpu = gpu;
    snprintf(made->key, sizeof made->key, "%.*s", (int)(equals - pair), pair);
    snprintf(made->value, sizeof made->value, "%s", equals + 1);
}

static void read_scenario(void) {
    const char *path = getenv("NVML_STANDIN_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) {
        fprintf(stderr, "nvml stand-in: NVML_STANDIN_SCENARIO names no readable file: %s\n", path ? path : "");
        exit(70);
    }
    char *line = NULL, *rest = NULL;
    size_t size = 0;
    while (getline(&line, &size, file) >= 0) {
        line[strcspn(line, "#\n")] = 0;
        char *at = strtok_r(line, " \t", &rest), *gpu = strtok_r(NULL, " \t", &rest), *pair;
        while (gpu && (pair = strtok_r(NULL, " \t", &rest)))
            add(atof(at), *gpu == '*' ? OF_ALL : *gpu == '-' ? OF_NONE : atoi(gpu), pair);
    }
    free(line);
    fclose(file);
}

static int concerns(const Setting *setting, int gpu, const char *key) {
    return (setting->gpu == gpu || (gpu >= 0 && setting->gpu == OF_ALL)) && !strcmp(setting->key, key);
}

static const char *state_path(void) {
    static char path[4096];
    snprintf(path, sizeof path, "%s.state", getenv("NVML_STANDIN_SCENARIO"));
    return path;
}

static void keep(int gpu, const char *key, unsigned value) {
    FILE *file = fopen(state_path(), "a");
    if (!file) exit(70);
    fprintf(file, "%d %s=%u\n", gpu, key, value);
    fclose(file);
}

/* What a setter of any process set last, NULL where none did. */
static const char *kept(int gpu, const char *key) {
    static char value[96];
    char of_key[64], read[96];
    const char *found = NULL;
    int of_gpu;
    FILE *file = fopen(state_path(), "r");
    if (!file) return NULL;
    while (fscanf(file, "%d %63[^=]=%95s", &of_gpu, of_key, read) == 3)
        if (of_gpu == gpu && !strcmp(of_key, key)) found = strcpy(value, read);
    fclose(file);
    return found;
}

/* The value of a key now, NULL where it was never set. */
static const char *text(int gpu, const char *key) {
    double now_s = elapsed_s();
    const char *found = NULL;
    if (!strcmp(key, "power_limit_w") || !strcmp(key, "locked_clock_mhz")) {
        found = kept(gpu, key);
        if (found) return found;
    }
    for (size_t i = 0; i < setting_count && settings[i].at_s <= now_s; i++)
        if (concerns(&settings[i], gpu, key)) found = settings[i].value;
    return found;
}

static double number(int gpu, const char *key, double otherwise) {
    const char *found = text(gpu, key);
    return found && *found ? strtod(found, NULL) : otherwise;
}

static int device_count(void) { return (int)number(OF_NONE, "gpus", 1); }

/* A handle is 1 + the GPU's index; that of instance I of GPU G is 1000 * (G + 1) + I, and asks the GPU but for its own. */
enum { INSTANCES = 1000 };
static int index_of(void *device) {
    int handle = (int)(intptr_t)device;
    return (handle < INSTANCES ? handle : handle / INSTANCES) - 1;
}
static int instance_of(void *device) {
    int handle = (int)(intptr_t)device;
    return handle < INSTANCES ? -1 : handle % INSTANCES;
}
static int instances(int gpu) { return (int)(number(gpu, "mig", 0) ? number(gpu, "mig_instances", 0) : 0); }

/* The key of a GPU, or of one instance of it. */
static const char *key_of(void *device, const char *key) {
    static char of_instance[64];
    if (instance_of(device) < 0) return key;
    snprintf(of_instance, sizeof of_instance, "mig.%d.%s", instance_of(device), key);
    return of_instance;
}

static int faulted(int gpu, const char *function) {
    char key[64];
    snprintf(key, sizeof key, "error.%s", function);
    int code = (int)number(gpu, "error.all", SUCCESS);
    return code ? code : (int)number(gpu, key, SUCCESS);
}

/* Why a function of the library fails now, SUCCESS where it does not. */
static int refused(const char *function) {
    if (!users) return UNINITIALIZED;
    return faulted(OF_NONE, function);
}

static int refused_of(void *device, const char *function) {
    int code = refused(function);
    if (code) return code;
    if (index_of(device) < 0 || index_of(device) >= device_count()) return INVALID_ARGUMENT;
    /* An instance has no sensors of its own. */
    if (instance_of(device) >= 0 && (strstr(function, "Power") || strstr(function, "Energy") ||
                                     strstr(function, "Temperature") || strstr(function, "FieldValues")))
        return NOT_SUPPORTED;
    double stalled_s = number(index_of(device), "stall_until_s", 0) - elapsed_s();
    if (stalled_s > 0) usleep((useconds_t)(stalled_s * 1e6));
    return faulted(index_of(device), function);
}

#define ASK() do { int code_ = refused(__func__); if (code_) return code_; } while (0)
#define ASK_OF(device) do { int code_ = refused_of(device, __func__); if (code_) return code_; } while (0)

/* A value with '_' for spaces, or a format with the GPU's index where it was never set. */
static int say(char *out, unsigned size, int gpu, const char *key, const char *otherwise) {
    char said[96];
    const char *found = text(gpu, key);
    if (found) snprintf(said, sizeof said, "%s", found);
    else snprintf(said, sizeof said, otherwise, gpu);
    for (char *c = said; *c; c++) if (*c == '_') *c = ' ';
    if (strlen(said) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, said);
    return SUCCESS;
}

/* Energy counter in mJ: the draw is constant between settings, so its integral is a sum. */
static double counted_mj(int gpu) {
    double now_s = elapsed_s(), at_s = 0, power_w = 300, scale = 1, counter_mj = 1e9;
    for (size_t i = 0; i < setting_count && settings[i].at_s <= now_s; i++) {
        double value = strtod(settings[i].value, NULL);
        counter_mj += power_w * scale * (settings[i].at_s - at_s) * 1e3;
        at_s = settings[i].at_s;
        if (concerns(&settings[i], gpu, "power_w")) power_w = value;
        if (concerns(&settings[i], gpu, "counter_scale")) scale = value;
        if (concerns(&settings[i], gpu, "counter_mj")) counter_mj = value;
    }
    return counter_mj + power_w * scale * (now_s - at_s) * 1e3;
}

static unsigned long long counter_mj(int gpu) {
    unsigned long long modulo = (unsigned long long)number(gpu, "counter_modulo_mj", 0);
    unsigned long long counted = (unsigned long long)counted_mj(gpu);
    return modulo ? counted % modulo : counted;
}

static unsigned power_mw(int gpu) {
    return (unsigned)(number(gpu, "reported_w", number(gpu, "power_w", 300)) * 1e3);
}

/* ---- the library ---------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!settings) {
        read_scenario();
        started_s = monotonic_s();
    }
    int code = faulted(OF_NONE, __func__);
    if (!code) users++;
    return code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    ASK();
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 7: return "Insufficient Size";
    case 9: return "Driver Not Loaded";
    case 13: return "Function Not Found";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) { ASK(); return say(out, size, OF_NONE, "driver", "580.65.06"); }
int nvmlSystemGetNVMLVersion(char *out, unsigned size) { ASK(); return say(out, size, OF_NONE, "nvml", "13.580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { ASK(); *out = (int)number(OF_NONE, "cuda", 13000); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { ASK(); *out = (unsigned)device_count(); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    ASK();
    if ((int)index >= device_count()) return INVALID_ARGUMENT;
    *out = (void *)(intptr_t)(index + 1);
    return faulted((int)index, __func__);
}

static int uuid_of(int gpu, char *out, unsigned size) {
    return say(out, size, gpu, "uuid", "GPU-%08x-0000-0000-0000-000000000000");
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    char of_gpu[96];
    ASK();
    for (int gpu = 0; gpu < device_count(); gpu++) {
        if (!uuid_of(gpu, of_gpu, sizeof of_gpu) && !strcmp(of_gpu, uuid)) {
            *out = (void *)(intptr_t)(gpu + 1);
            return faulted(gpu, __func__);
        }
        for (int i = 0; i < instances(gpu); i++) {
            void *device = (void *)(intptr_t)(INSTANCES * (gpu + 1) + i);
            const char *said = text(gpu, key_of(device, "uuid"));
            if (said && !strcmp(said, uuid)) {
                *out = device;
                return faulted(gpu, __func__);
            }
        }
    }
    return NOT_FOUND;
}

/* ---- instances of a GPU --------------------------------------------------------------------------------- */

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *out) { ASK_OF(device); *out = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **out) {
    ASK_OF(device);
    if ((int)index >= instances(index_of(device))) return NOT_FOUND;
    *out = (void *)(intptr_t)(INSTANCES * (index_of(device) + 1) + (int)index);
    return SUCCESS;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *device, void **out) {
    ASK_OF(device);
    if (instance_of(device) < 0) return INVALID_ARGUMENT;
    *out = (void *)(intptr_t)(index_of(device) + 1);
    return SUCCESS;
}

/* ---- what a GPU is -------------------------------------------------------------------------------------- */

int nvmlDeviceGetName(void *device, char *out, unsigned size) {
    ASK_OF(device);
    return say(out, size, index_of(device), key_of(device, "name"), "NVIDIA H200");
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
    ASK_OF(device);
    if (instance_of(device) >= 0) return say(out, size, index_of(device), key_of(device, "uuid"), "MIG-of-%d");
    return uuid_of(index_of(device), out, size);
}

int nvmlDeviceGetSerial(void *device, char *out, unsigned size) {
    ASK_OF(device);
    return say(out, size, index_of(device), "serial", "%06d");
}

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(void *device, Memory *out) {
    ASK_OF(device);
    out->total = (unsigned long long)number(index_of(device), key_of(device, "memory_mib"), 143771) << 20;
    out->used = (unsigned long long)number(index_of(device), "memory_used_mib", 0) << 20;
    out->free = out->total - out->used;
    return SUCCESS;
}

typedef struct { char bus_id_legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; } Pci;
static int pci_of(int gpu, Pci *out) {
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)number(gpu, "pci_bus", gpu + 1);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "0000:%02X:00.0", out->bus & 0xff);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus & 0xff);
    return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(void *device, Pci *out) { ASK_OF(device); return pci_of(index_of(device), out); }

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    ASK_OF(device);
    const char *said = text(index_of(device), "compute_capability");
    if (sscanf(said ? said : "9.0", "%d.%d", major, minor) != 2) return NOT_SUPPORTED;
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(void *device, unsigned words, unsigned long *out, unsigned scope) {
    ASK_OF(device);
    (void)scope;
    int node = (int)number(index_of(device), "numa", 0);
    if (node < 0) return NOT_SUPPORTED;
    if (words <= (unsigned)node / 64) return INSUFFICIENT_SIZE;
    memset(out, 0, words * sizeof *out);
    out[node / 64] = 1ul << node % 64;
    return SUCCESS;
}

enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5 };
int nvmlDeviceGetP2PStatus(void *device, void *other, unsigned index, unsigned *out) {
    ASK_OF(device);
    ASK_OF(other);
    (void)index;
    double own = number(index_of(device), "island", -1);
    *out = own >= 0 && own == number(index_of(other), "island", -1) ? P2P_OK : P2P_NOT_SUPPORTED;
    return SUCCESS;
}

/* ---- plain numbers: one function, one key --------------------------------------------------------------- */

#define NUMBER(FUNCTION, TYPE, KEY, SCALE, OTHERWISE)                                  \
    int FUNCTION(void *device, TYPE *out) {                                            \
        ASK_OF(device);                                                                \
        int gpu = index_of(device);                                                    \
        *out = (TYPE)(number(gpu, KEY, OTHERWISE) * (SCALE));                          \
        return SUCCESS;                                                                \
    }
NUMBER(nvmlDeviceGetMinorNumber, unsigned, "minor", 1, gpu)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, "persistence", 1, 1)
NUMBER(nvmlDeviceGetComputeMode, unsigned, "compute_mode", 1, 0)
NUMBER(nvmlDeviceGetPerformanceState, unsigned, "pstate", 1, 0)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, "power_limit_w", 1e3, 700)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, "default_power_limit_w", 1e3, 700)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, "enforced_power_limit_w", 1e3, number(gpu, "power_limit_w", 700))
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, "pcie_generation", 1, 5)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, "max_pcie_generation", 1, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, "pcie_width", 1, 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, "max_pcie_width", 1, 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, unsigned, "pcie_replays", 1, 0)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, "retired_pending", 1, 0)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "reasons", 1, 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "reasons", 1, 0)
NUMBER(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, "supported_reasons", 1, 0x1ff)
NUMBER(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, "supported_reasons", 1, 0x1ff)

#define PAIR(FUNCTION, FIRST, FIRST_OTHERWISE, SECOND, SECOND_OTHERWISE, SCALE)        \
    int FUNCTION(void *device, unsigned *first, unsigned *second) {                    \
        ASK_OF(device);                                                                \
        int gpu = index_of(device);                                                    \
        *first = (unsigned)(number(gpu, FIRST, FIRST_OTHERWISE) * (SCALE));            \
        *second = (unsigned)(number(gpu, SECOND, SECOND_OTHERWISE) * (SCALE));         \
        return SUCCESS;                                                                \
    }
PAIR(nvmlDeviceGetEccMode, "ecc", 1, "ecc_pending", number(gpu, "ecc", 1), 1)
PAIR(nvmlDeviceGetMigMode, "mig", 0, "mig_pending", number(gpu, "mig", 0), 1)
PAIR(nvmlDeviceGetPowerManagementLimitConstraints, "min_power_limit_w", 200, "max_power_limit_w", 700, 1e3)

int nvmlDeviceSetPowerManagementLimit(void *device, unsigned limit_mw) {
    ASK_OF(device);
    double least_w = number(index_of(device), "min_power_limit_w", 200), most_w = number(index_of(device), "max_power_limit_w", 700);
    if (limit_mw < least_w * 1e3 || limit_mw > most_w * 1e3) return INVALID_ARGUMENT;
    keep(index_of(device), "power_limit_w", limit_mw / 1000);
    return SUCCESS;
}
int nvmlDeviceSetGpuLockedClocks(void *device, unsigned least_mhz, unsigned most_mhz) {
    ASK_OF(device);
    if (least_mhz > most_mhz) return INVALID_ARGUMENT;
    keep(index_of(device), "locked_clock_mhz", most_mhz);
    return SUCCESS;
}
int nvmlDeviceResetGpuLockedClocks(void *device) { ASK_OF(device); keep(index_of(device), "locked_clock_mhz", 0); return SUCCESS; }

typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(void *device, Utilization *out) {
    ASK_OF(device);
    out->gpu = (unsigned)number(index_of(device), "utilization", 90);
    out->memory = (unsigned)number(index_of(device), "memory_utilization", 50);
    return SUCCESS;
}

/* ---- clocks and temperature ----------------------------------------------------------------------------- */

enum { CLOCK_MEMORY = 2 };
int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *out) {
    ASK_OF(device);
    *out = type == CLOCK_MEMORY ? (unsigned)number(index_of(device), "memory_clock_mhz", 3201)
                                : (unsigned)number(index_of(device), "clock_mhz", 1980);
    unsigned locked = (unsigned)number(index_of(device), "locked_clock_mhz", 0);
    if (locked && type != CLOCK_MEMORY) *out = locked;
    return SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(void *device, unsigned type, unsigned *out) {
    ASK_OF(device);
    *out = type == CLOCK_MEMORY ? (unsigned)number(index_of(device), "max_memory_clock_mhz", 3201)
                                : (unsigned)number(index_of(device), "max_clock_mhz", 1980);
    return SUCCESS;
}
int nvmlDeviceGetApplicationsClock(void *device, unsigned type, unsigned *out) {
    ASK_OF(device);
    *out = type == CLOCK_MEMORY ? (unsigned)number(index_of(device), "memory_clock_mhz", 3201)
                                : (unsigned)number(index_of(device), "application_clock_mhz", 1980);
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *out) {
    ASK_OF(device);
    (void)sensor;
    *out = (unsigned)number(index_of(device), "temperature_c", 55);
    return SUCCESS;
}
typedef struct { unsigned version, sensor; int temperature; } Temperature;
int nvmlDeviceGetTemperatureV(void *device, Temperature *out) {
    ASK_OF(device);
    out->temperature = (int)number(index_of(device), "temperature_c", 55);
    return SUCCESS;
}
int nvmlDeviceGetTemperatureThreshold(void *device, unsigned type, unsigned *out) {
    ASK_OF(device);
    if (type > 1) return NOT_SUPPORTED;
    *out = (unsigned)(type ? number(index_of(device), "slowdown_c", 90) : number(index_of(device), "shutdown_c", 95));
    return SUCCESS;
}

/* ---- power and energy ----------------------------------------------------------------------------------- */

int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { ASK_OF(device); *out = power_mw(index_of(device)); return SUCCESS; }

static double unscoped_counter_scale(int gpu) {
    double own_w = number(gpu, "power_w", 300);
    return number(gpu, "module_counter", 0) && own_w > 0 ? number(gpu, "module_w", own_w) / own_w : 1;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) {
    ASK_OF(device);
    *out = (unsigned long long)(counter_mj(index_of(device)) * unscoped_counter_scale(index_of(device)));
    return SUCCESS;
}

typedef struct {
    unsigned field, scope;
    long long timestamp_us, latency_us;
    unsigned type;
    int code;
    union { double d; unsigned ui; unsigned long ul; unsigned long long ull; } value;
} FieldValue;

static int field_code(int gpu, FieldValue *out) {
    char key[64];
    snprintf(key, sizeof key, "error.field.%u", out->field);
    int code = (int)number(gpu, key, SUCCESS);
    if (code) return code;
    int is_module = out->scope == SCOPE_MODULE && text(gpu, "module_w");
    int is_power = out->field == FIELD_POWER_INSTANT || out->field == FIELD_POWER_AVERAGE;
    if (out->scope != SCOPE_GPU && !(is_module && is_power)) return NOT_SUPPORTED;
    if (is_power) {
        out->type = TYPE_UNSIGNED_INT;
        out->value.ui = is_module ? (unsigned)(number(gpu, "module_w", 0) * 1e3) : power_mw(gpu);
        return SUCCESS;
    }
    out->type = TYPE_UNSIGNED_LONG_LONG;
    if (out->field == FIELD_ENERGY || out->field == FIELD_TOTAL_ENERGY) {
        out->value.ull = counter_mj(gpu);
        return SUCCESS;
    }
    snprintf(key, sizeof key, "field.%u", out->field);
    if (!text(gpu, key)) return NOT_SUPPORTED;
    out->value.ull = (unsigned long long)number(gpu, key, 0);
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values) {
    ASK_OF(device);
    for (int i = 0; i < count; i++) {
        values[i].timestamp_us = (long long)(elapsed_s() * 1e6);
        values[i].code = field_code(index_of(device), &values[i]);
    }
    return SUCCESS;
}

/* ---- processes ------------------------------------------------------------------------------------------ */

typedef struct { unsigned pid; unsigned long long used_bytes; unsigned gpu_instance, compute_instance; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *out) {
    ASK_OF(device);
    const char *pids = text(index_of(device), "pids");
    unsigned found = 0, room = *count;
    for (; pids && *pids; found++) {
        unsigned pid = *pids == 's' ? (unsigned)getpid() : (unsigned)strtoul(pids, NULL, 10);
        if (out && found < room) out[found] = (Process){pid, 1 << 30, ~0u, ~0u};
        pids += strcspn(pids, ",");
        pids += *pids == ',';
    }
    *count = found;
    return found > room || (found && !out) ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *out) {
    ASK_OF(device);
    (void)out;
    *count = 0;
    return SUCCESS;
}

/* ---- health: ECC, pages, links -------------------------------------------------------------------------- */

static double errors(int gpu, unsigned type, unsigned counter, int location) {
    char key[64];
    int length = snprintf(key, sizeof key, "ecc.%s.%s", type ? "uncorrected" : "corrected", counter ? "aggregate" : "volatile");
    if (location >= 0) snprintf(key + length, sizeof key - length, ".%d", location);
    return number(gpu, key, 0);
}
int nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, unsigned long long *out) {
    ASK_OF(device);
    if (!number(index_of(device), "ecc", 1)) return NOT_SUPPORTED;
    *out = (unsigned long long)errors(index_of(device), type, counter, -1);
    return SUCCESS;
}
int nvmlDeviceGetMemoryErrorCounter(void *device, unsigned type, unsigned counter, unsigned location, unsigned long long *out) {
    ASK_OF(device);
    if (!number(index_of(device), "ecc", 1)) return NOT_SUPPORTED;
    *out = (unsigned long long)errors(index_of(device), type, counter, (int)location);
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    ASK_OF(device);
    *corrected = (unsigned)number(index_of(device), "remapped_corrected", 0);
    *uncorrected = (unsigned)number(index_of(device), "remapped_uncorrected", 0);
    *pending = (unsigned)number(index_of(device), "remap_pending", 0);
    *failed = (unsigned)number(index_of(device), "remap_failed", 0);
    return SUCCESS;
}

int nvmlDeviceGetRetiredPages(void *device, unsigned cause, unsigned *count, unsigned long long *out) {
    ASK_OF(device);
    (void)cause;
    unsigned retired = (unsigned)number(index_of(device), "retired_pages", 0), room = *count;
    *count = retired;
    if (retired > room || !out) return retired ? INSUFFICIENT_SIZE : SUCCESS;
    for (unsigned i = 0; i < retired; i++) out[i] = 0x1000ull * (i + 1);
    return SUCCESS;
}
int nvmlDeviceGetRetiredPages_v2(void *device, unsigned cause, unsigned *count, unsigned long long *out, unsigned long long *at) {
    ASK_OF(device);
    int code = nvmlDeviceGetRetiredPages(device, cause, count, out);
    for (unsigned i = 0; !code && at && i < *count; i++) at[i] = 0;
    return code;
}

static int link_number(void *device, unsigned link, const char *what, double otherwise, double *out) {
    char key[64];
    if (link >= (unsigned)number(index_of(device), "nvlinks", 0)) return NOT_SUPPORTED;
    snprintf(key, sizeof key, "nvlink.%u.%s", link, what);
    *out = number(index_of(device), key, otherwise);
    return SUCCESS;
}
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *out) {
    double state = 0;
    ASK_OF(device);
    int code = link_number(device, link, "state", 1, &state);
    *out = (unsigned)state;
    return code;
}
int nvmlDeviceGetNvLinkErrorCounter(void *device, unsigned link, unsigned counter, unsigned long long *out) {
    char what[32];
    double counted = 0;
    ASK_OF(device);
    snprintf(what, sizeof what, "error.%u", counter);
    int code = link_number(device, link, what, 0, &counted);
    *out = (unsigned long long)counted;
    return code;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, Pci *out) {
    double remote = -1;
    ASK_OF(device);
    int code = link_number(device, link, "remote", -1, &remote);
    if (code) return code;
    if (remote < 0) return NOT_SUPPORTED;
    return pci_of((int)remote, out);
}

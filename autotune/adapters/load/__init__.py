"""The load driver: clients in processes of their own."""

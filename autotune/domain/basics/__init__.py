"""What everything else is said with: errors for users, units, levels of evidence."""

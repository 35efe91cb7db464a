"""What everything else stands on: errors, files, text, progress, the device."""

"""What Restormer and PromptIR share."""

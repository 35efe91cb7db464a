"""What the user asks for, validated."""

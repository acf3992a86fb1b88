"""What the commands at the top level share."""

"""What the controller does beside asking: certificates, wheels, SSH to the boards."""

"""What deploy and the everyday commands do on the controller: certificates, wheels, SSH to the boards."""

# Restarts the agent if it runs. Runs as root.
systemctl try-restart edgellm-agent.service

# Stops and disables the agent, and prints that it does; with "look" it only prints. Runs as root.
unit=edgellm-agent.service
if systemctl is-enabled --quiet "$unit" 2>/dev/null || systemctl is-active --quiet "$unit" ||
  [ "$(systemctl is-active "$unit")" = activating ]; then
  echo "edgellm_stopped=$unit"
  [ "$1" = look ] || systemctl disable --now "$unit"
fi

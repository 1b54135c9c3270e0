# Removes everything that deploy has put on a board, and prints what; with "look" it only prints. Runs as root.
units="edgellm-server.service edgellm-agent.service"
gone() { echo "edgellm_gone=$1"; }
for unit in $units; do
  [ -e "/etc/systemd/system/$unit" ] || continue
  gone "$unit"
  [ "$1" = look ] || systemctl disable --quiet --now "$unit"
done
for path in /etc/systemd/system/edgellm-server.service /etc/systemd/system/edgellm-agent.service /etc/edgellm \
  /opt/edgellm /var/lib/edgellm /var/lib/edgellm-server /run/edgellm-agent; do
  [ -e "$path" ] || continue
  gone "$path"
  [ "$1" = look ] || rm -rf "$path" || exit 1
done
[ "$1" = look ] || { systemctl daemon-reload; systemctl reset-failed $units 2>/dev/null; }
for name in edgellm-server edgellm; do
  if id "$name" >/dev/null 2>&1; then
    gone "user $name"
    [ "$1" = look ] || userdel "$name" || exit 1
  fi
  if getent group "$name" >/dev/null; then
    gone "group $name"
    [ "$1" = look ] || groupdel "$name" || exit 1
  fi
done
true

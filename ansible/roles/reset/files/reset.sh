# Removes everything that deploy has put on a board, and prints what; with "look" it only prints. Runs as root.
unit=edgellm-agent.service
gone() { echo "edgellm_gone=$1"; }
if [ -e "/etc/systemd/system/$unit" ]; then
  gone "$unit"
  [ "$1" = look ] || systemctl disable --quiet --now "$unit"
fi
for path in "/etc/systemd/system/$unit" /etc/edgellm /opt/edgellm /var/lib/edgellm /run/edgellm-agent; do
  [ -e "$path" ] || continue
  gone "$path"
  [ "$1" = look ] || rm -rf "$path" || exit 1
done
[ "$1" = look ] || { systemctl daemon-reload; systemctl reset-failed "$unit" 2>/dev/null; }
if id edgellm >/dev/null 2>&1; then
  gone "user edgellm"
  [ "$1" = look ] || userdel edgellm || exit 1
fi
if getent group edgellm >/dev/null; then
  gone "group edgellm"
  [ "$1" = look ] || groupdel edgellm || exit 1
fi
true

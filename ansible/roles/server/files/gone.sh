# Removes the server from a machine, and prints what it removes; with "look" it only prints. Runs as root.
unit=edgellm-server.service user=edgellm-server
gone() { echo "edgellm_gone=$1"; }
if [ -e "/etc/systemd/system/$unit" ]; then
  gone "$unit"
  [ "$1" = look ] || systemctl disable --quiet --now "$unit"
fi
for path in "/etc/systemd/system/$unit" /opt/edgellm/server /var/lib/edgellm-server /var/lib/edgellm/server-wheels; do
  [ -e "$path" ] || continue
  gone "$path"
  [ "$1" = look ] || rm -rf "$path" || exit 1
done
[ "$1" = look ] || { systemctl daemon-reload; systemctl reset-failed "$unit" 2>/dev/null; }
# On a machine without an agent, these are left empty.
[ "$1" = look ] || rmdir /var/lib/edgellm /opt/edgellm 2>/dev/null
if id "$user" >/dev/null 2>&1; then
  gone "user $user"
  [ "$1" = look ] || userdel "$user" || exit 1
fi
if getent group "$user" >/dev/null; then
  gone "group $user"
  [ "$1" = look ] || groupdel "$user" || exit 1
fi
true

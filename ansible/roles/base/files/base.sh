# Makes the user and the folders that edgellm needs on a board, and prints what it had to make; with "look" it only
# prints. Runs as root. It is one script because each Ansible module takes a second on a board.
look=$1
umask 022   # root's own may keep others out, and the agent is another user
made() { echo "edgellm_made=$1"; [ "$look" != look ]; }   # prints what is missing; true if it is to be made
if ! getent group edgellm >/dev/null; then
  made "group edgellm" && { groupadd --system edgellm || exit; }
fi
if ! id edgellm >/dev/null 2>&1; then
  made "user edgellm" && { useradd --system --gid edgellm --no-create-home --home-dir /var/lib/edgellm \
    --shell /usr/sbin/nologin edgellm || exit; }
elif [ "$(getent passwd edgellm | cut -d: -f6-)" != /var/lib/edgellm:/usr/sbin/nologin ]; then
  made "user edgellm" && { usermod --home /var/lib/edgellm --shell /usr/sbin/nologin edgellm || exit; }
fi
# -L, because a folder may be a link to one on a larger disk.
while read -r mode group path; do
  [ "$(stat -L -c '%a %G %U' "$path" 2>/dev/null)" = "$mode $group root" ] && continue
  made "$path" && { install --directory --owner=root --group="$group" --mode="$mode" "$path" || exit; }
done <<END
755 root /opt/edgellm
755 root /opt/edgellm/versions
755 root /var/lib/edgellm
755 root /var/lib/edgellm/wheels
755 root /var/lib/edgellm/models
755 root /etc/edgellm
750 edgellm /etc/edgellm/tls
END
true

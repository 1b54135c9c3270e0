# Prints what the machine has of the server as JSON; the last line lists the versions that are installed completely.
root=/opt/edgellm/server state=/var/lib/edgellm-server unit=/etc/systemd/system/edgellm-server.service
sha256() { sha256sum <"$1" 2>/dev/null | cut -c -64; }
complete=
for folder in "$root"/versions/*/; do
  [ -e "$folder.complete" ] && [ -x "${folder}bin/python" ] && complete="$complete $(basename "$folder")"
done
version=$(basename "$(readlink "$root/current")")
case "$complete " in *" $version "*) ;; *) version= ;; esac
printf '{"version": "%s", "complete": "%s", "active": "%s", "enabled": "%s", "unit": "%s", "stamp": "%s", ' \
  "$version" "${complete# }" "$(systemctl is-active edgellm-server.service)" \
  "$(systemctl is-enabled edgellm-server.service 2>/dev/null)" "$([ -e "$unit" ] && base64 -w 0 "$unit")" \
  "$(cat "$state/.joined" 2>/dev/null)"
printf '"api-keys.json": "%s", "https-cert.pem": "%s", "https-key.pem": "%s", "unfinished": "%s"}\n' \
  "$(sha256 "$state/api-keys.json")" "$(sha256 "$state/https-cert.pem")" "$(sha256 "$state/https-key.pem")" \
  "$([ -e "$root/.unfinished" ] && echo yes)"

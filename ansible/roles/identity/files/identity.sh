# Puts the certificate and key that come as a tar stream into place, and what the CA has revoked: each file as a whole,
# readable for the agent alone.
# The agent notices renewed files by itself. But if the CA is another one, or if this board missed that something was
# revoked, its plan may be of an admin who doesn't count any more: then the agent starts anew, without a plan. Runs as root.
set -eu
umask 077
rm -rf /etc/edgellm/tls/.new.*  # what a power loss has left
new=$(mktemp -d /etc/edgellm/tls/.new.XXXXXX)
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
cd "$new"
stale=
for name in ca.pem revoked.json; do
  if [ -e "../$name" ] && [ "$(sha256sum <"$name")" != "$(sha256sum <"../$name")" ]; then stale=yes; fi
done
chown root:edgellm ca.pem crl.pem cert.pem revoked.json
chmod 0640 ca.pem crl.pem cert.pem revoked.json
chown edgellm:edgellm key.pem
chmod 0600 key.pem
sync ca.pem crl.pem key.pem cert.pem revoked.json
mv -f ca.pem crl.pem key.pem cert.pem revoked.json ..
[ -z "$stale" ] || systemctl try-restart edgellm-agent.service

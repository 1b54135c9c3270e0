# Removes version $1, which is not the running one. Runs as root.
[ "$(readlink /opt/edgellm/current)" = "versions/$1" ] || rm -rf "/opt/edgellm/versions/$1"

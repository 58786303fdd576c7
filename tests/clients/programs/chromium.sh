# chromium.sh URL SCRATCH: print the page as it is once its scripts have run.
set -eu
export HOME="$2/home"
mkdir -p "$HOME/.pki/nssdb"
certutil -d "sql:$HOME/.pki/nssdb" -N --empty-password
certutil -d "sql:$HOME/.pki/nssdb" -A -t C,, -n bursar -i "$BURSAR_TEST_CA"
# The proxy is that of the variable; it is named here only because Chromium goes past it for loopback otherwise.
exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
  --disable-background-networking --disable-component-update --disable-sync --disable-quic \
  --user-data-dir="$2/profile" --proxy-server="$https_proxy" --proxy-bypass-list='<-loopback>' \
  --virtual-time-budget=10000 --dump-dom "$1"

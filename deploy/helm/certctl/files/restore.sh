# Reads a dump back, in place of what is in the database: the newest, or the one that DUMP names. Nothing else may use the database
# meanwhile. If it fails, run it again: the dump is as it was.
set -eu
read -r URL < "$URL_FILE" || [ -n "$URL" ]
if [ -z "${DUMP:-}" ]; then
  for TOC in /backup/certctl-*/toc.dat; do DUMP="${TOC%/toc.dat}"; done
fi
pg_restore --list "$DUMP" > /dev/null
psql "$URL" -v ON_ERROR_STOP=1 -c 'DROP SCHEMA IF EXISTS inventory, issuance, renewalscheduler, asyncpoller, audit CASCADE'
pg_restore --exit-on-error --single-transaction -d "$URL" "$DUMP"
echo "restored $DUMP"

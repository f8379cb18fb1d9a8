# Dumps the database into a directory of its own below /backup, and removes all but the newest KEEP. A dump that was not finished
# has no toc.dat (pg_dump writes it last), is refused by pg_restore, and is removed by the next run.
set -eu
read -r URL < "$URL_FILE" || [ -n "$URL" ]
NOW=$(psql "$URL" -Atc "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS\"Z\"')")
for DUMP in /backup/certctl-*; do
  [ -d "$DUMP" ] && [ ! -f "$DUMP/toc.dat" ] && rm -r "$DUMP" && echo "removed the unfinished $DUMP"
done
pg_dump -Fd --no-password -f "/backup/certctl-$NOW" "$URL"
pg_restore --list "/backup/certctl-$NOW" > /dev/null
echo "wrote /backup/certctl-$NOW"
set -- $(ls -1d /backup/certctl-*)
while [ $# -gt "$KEEP" ]; do
  rm -r "$1"
  echo "removed $1"
  shift
done

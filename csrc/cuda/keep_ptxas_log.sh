# usage: keep_ptxas_log.sh DIRECTORY nvcc ... -o NAME.o ...
# Runs the compiler, keeps what ptxas says of every kernel in DIRECTORY/NAME.log, and shows the rest.
directory=$1
shift
output=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && output=$argument
  previous=$argument
done
mkdir -p "$directory"
log=$directory/$(basename "${output:-none}" .o).log
"$@" 2>"$log"
status=$?
grep -v -E '^ptxas info|^ +[0-9]+ bytes stack frame|^$' "$log" >&2
exit $status

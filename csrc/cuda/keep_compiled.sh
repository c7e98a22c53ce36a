# usage: keep_compiled.sh DIRECTORY nvcc ... -o NAME.o ...
# Runs the compiler, keeps what ptxas says of every kernel in DIRECTORY/NAME.log and compute_90's PTX in
# DIRECTORY/NAME.ptx, and shows the rest.
directory=$1
shift
output=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && output=$argument
  previous=$argument
done
mkdir -p "$directory"
kept=$directory/$(basename "${output:-none}" .o)
scratch=$(mktemp -d)
"$@" --keep --keep-dir "$scratch" 2>"$kept.log"
status=$?
cat "$scratch"/*compute_90.ptx >"$kept.ptx" 2>/dev/null
rm -rf "$scratch"
grep -v -E '^ptxas info|^ +[0-9]+ bytes stack frame|^$' "$kept.log" >&2
exit $status

#!/usr/bin/env bash
# Fetches the libraries of the run page at pinned versions and checks them: bash rollout/page/vendor/fetch.sh
# The files are kept in the repository, so this runs only to change a version: edit the pins, run it with
# --accept, and commit the files with the new SHA256SUMS.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unpack() {  # unpack NAME VERSION: the folder of the package
    mkdir -p "$work/$1"
    (cd "$work" && tar xzf "$(npm pack --silent "$1@$2")" -C "$work/$1" --strip-components=1)
}

unpack uplot 1.6.32
unpack katex 0.19.1
unpack @dagrejs/dagre 3.1.3

cp "$work/uplot/dist/uPlot.iife.min.js" "$work/uplot/dist/uPlot.min.css" "$here/"
cp "$work/uplot/LICENSE" "$here/uPlot.LICENSE"
cp "$work/katex/dist/katex.min.js" "$work/katex/dist/katex.min.css" "$here/"
cp "$work/katex/LICENSE" "$here/katex.LICENSE"
for font in AMS-Regular Caligraphic-Regular Main-Bold Main-Italic Main-Regular Math-Italic \
    Size1-Regular Size2-Regular Size3-Regular Size4-Regular Typewriter-Regular; do
    cp "$work/katex/dist/fonts/KaTeX_$font.woff2" "$here/"
done
cp "$work/@dagrejs/dagre/dist/dagre.min.js" "$here/"
cp "$work/@dagrejs/dagre/LICENSE" "$here/dagre.LICENSE"
# The names of source maps, which are not here, are dropped; control characters in strings are written as
# escapes: a browser replaces a NUL within HTML, and the script would no longer match its hash.
sed -i -e '/^\/\/# sourceMappingURL=/d' -e 's/\x00/\\x00/g' -e 's/\x01/\\x01/g' "$here"/*.js
chmod 644 "$here"/*.js "$here"/*.css "$here"/*.woff2 "$here"/*.LICENSE

cd "$here"
if [ "${1:-}" = --accept ]; then
    sha256sum ./*.js ./*.css ./*.woff2 ./*.LICENSE > SHA256SUMS
else
    sha256sum --check --quiet SHA256SUMS
    echo "rollout/page/vendor: as in SHA256SUMS"
fi

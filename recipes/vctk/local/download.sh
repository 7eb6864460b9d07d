#!/usr/bin/env bash
# Download release 0.92 of VCTK and unpack it.
#
# usage: download.sh DIR [URL SHA256]
#
# DIR appears when all is unpacked. A download that was interrupted goes on from where it stopped. The checksum is
# that of torchaudio.datasets.VCTK_092.

set -euo pipefail
corpus_dir=${1:?usage: download.sh DIR [URL SHA256]}
url=${2:-https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip}
sha256=${3:-f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c}
corpus_dir=${corpus_dir%/}
archive=$corpus_dir.zip
unpacked=$corpus_dir.partial
needed_gb=25 # The archive has 11.7 GB; the FLAC files in it need as much again.

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# check FILE REMEDY: fails if a file is not the archive.
check() {
  echo "$sha256  $1" | sha256sum --check --status || fail "$1: has another checksum than $sha256; $2"
}

for tool in curl sha256sum python3; do
  command -v "$tool" >/dev/null || fail "$tool: is not installed"
done
if [[ -d $corpus_dir ]]; then
  rmdir "$corpus_dir" 2>/dev/null || fail "$corpus_dir: is no VCTK and not empty; name another folder"
fi
mkdir -p "$(dirname "$corpus_dir")"

if [[ ! -f $archive && ! -f $archive.partial ]]; then
  free_gb=$(($(df -Pk "$(dirname "$corpus_dir")" | awk 'NR == 2 { print $4 }') / 1000000))
  ((free_gb >= needed_gb)) ||
    fail "$(dirname "$corpus_dir"): has $free_gb GB free, the download needs $needed_gb GB; name another folder"
fi

if [[ -f $archive ]]; then
  check "$archive" "move it away and try again"
else
  curl --fail --location --retry 5 --continue-at - --output "$archive.partial" "$url"
  check "$archive.partial" "delete it and try again"
  mv "$archive.partial" "$archive"
fi

rm -rf "$unpacked"
python3 -m zipfile --extract "$archive" "$unpacked"
mv "$unpacked" "$corpus_dir"
rm "$archive"

#!/usr/bin/env bash
# UWAV from nothing to two tables and a report. Finished stages are not run again; an interrupted one continues.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash run_all.sh [options]          every stage on the demo world (invented features, minutes on 2 CPU cores)
bash run_all.sh --data DIR         the full reproduction, on the authors' features, SOURCE of `features.py pack`
                                   (docs/real_data.md); with --fetch they are downloaded first, as far as they can be:
                                   add --features clip_clap
bash run_all.sh --llp DIR --unav FILE    the real annotation files with invented features
bash run_all.sh --own DIR          your own videos: DIR has labels.csv (and events.csv, classes.txt): docs/own_videos.md
bash run_all.sh test [--thorough] [pytest options]    set up and run the tests: 2 minutes, or all of them, 22 to 28

  --out DIR        where everything goes (default: runs/demo, runs/real or runs/paper)
  --seeds N        repeat with N seeds and report mean and standard deviation (default: 1)
  --preset NAME    demo (small models) or paper (the published ones; default with --data)
  --features SET   base or clip_clap (default: all that are there)
  --device NAME    cpu or cuda (default: cuda where there is a GPU)
  --fast           train in bf16 and, on a GPU, with compiled kernels
  --fetch          download the published annotations and CLIP/CLAP features into the folder of --data (tried on a local
                   server only)
  --sweep          also train UWAV with alpha and W varied, one at a time
  --field          also train every system of the paper's tables, each as published: docs/field.md
  --videos CLIPS   with --own: the folder of clips, which are checked first; without it, DIR has their features
  --segments N     with --own: seconds of every clip that are used (default: 10); with --windows all are, N at a time
  --accept KINDS   with --own: go on in spite of what the first step lists as doubtful; it says which KINDS
  --missing zeros, --longest S, --retry    with --own: use clips without sound or picture, or of up to S s (default:
                   600); try those again that could not be read
  --teacher FILE   with --own: a teacher of real features; without it, labels come from single seconds
  --clip-weights W, --clap-weights W       with --own: files of weights (default: downloaded by name)
  --dry-run        with --own: random weights unless W are named, and any teacher will do: to see that all runs
  --fresh          begin anew: delete what earlier runs wrote, if the output folder holds nothing else
  -- OPTIONS       passed on to every training stage, e.g. -- --set epochs=1

The first run makes a virtual environment in .venv, unless the active python has all packages already.
UWAV_TORCH names the PyTorch to install, e.g. UWAV_TORCH=torch==2.13.0.
TEXT
}

die() { echo "error: $*" >&2; exit 1; }

# ---- setup: $python can import what we need ----

case $(uname -s) in MINGW* | MSYS* | CYGWIN*) die "a virtual environment of Windows has no bin/, so this does not run here; run it in WSL" ;; esac
# The Pythons that pyproject.toml admits.
python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null ||
    die "this needs Python 3.10 to 3.14, as python3; tried ones: docs/versions.md"

install() { # by uv, in half of pip's time; by pip where uv cannot be had or pip is told of an index of its own
    if "$python" -m pip config list | grep -q '\.index-url' || ! { "$python" -m pip install --quiet uv &&
        UV_FIND_LINKS=${PIP_FIND_LINKS:-} "$python" -m uv pip install --quiet $bytecode --python "$python" "$@"; }
    then
        "$python" -m pip install --quiet "$@"
    fi
}

setup() { # setup EXTRAS MODULES: the extras of pyproject.toml to install, unless the active python has the modules
    python=python3
    local found='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))'
    # shellcheck disable=SC2086  # words are wanted
    if python3 -c "$found" $2; then return; fi
    python=.venv/bin/python
    local installed
    installed=.venv/installed-$1-$(cksum <pyproject.toml | cut -d' ' -f1)
    if [ -e "$installed" ]; then return; fi
    # The newest PyTorch where there is a GPU; elsewhere the version that the published CPU figures were made with.
    local torch=torch==2.13.0 extras=${1/onnx/onnx-cpu} bytecode=--compile-bytecode
    if command -v nvidia-smi >/dev/null; then torch=torch extras=$1; fi
    if [ "$1" = onnx,features ]; then bytecode=; fi # 200 MB for what is seldom imported
    echo "== setup: installing ${UWAV_TORCH:-PyTorch} and the other packages into .venv (minutes, once)"
    [ -x "$python" ] || python3 -m venv .venv
    [ -x "$python" ] || die ".venv has no bin/python, as an environment of Windows; delete it and run this in WSL, Linux or macOS"
    if [ -n "${UWAV_TORCH:-}" ] || ! "$python" -c "import torch" 2>/dev/null; then # keep the one that is there
        install "${UWAV_TORCH:-$torch}"
    fi
    # No package may bring another PyTorch: torchvision would, and with it the GPU build in place of the CPU's.
    "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >.venv/constraints.txt
    install --constraint .venv/constraints.txt --editable ".[$extras]"
    touch "$installed"
}

# ---- options ----

cd "$(dirname "${BASH_SOURCE[0]}")"
called="bash run_all.sh $*"
needs="torch numpy tqdm matplotlib onnx onnxscript onnxruntime" # modules, of any run
if [ "${1:-}" = test ]; then
    shift
    if [[ " $* " == *" --thorough "* ]]; then
        setup "onnx,test,thorough,features${UWAV_EXTRAS:+,$UWAV_EXTRAS}" "$needs pytest xdist hypothesis markdown_it av pebble open_clip laion_clap"
        # A file of tests a process, one process more than cores: many tests wait for another program.
        exec "$python" -m pytest -n "$("$python" -c 'import os; print((os.cpu_count() or 1) + 1)')" --dist loadfile \
            --no-loadscope-reorder "$@"
    fi
    setup onnx,test "$needs pytest"
    exec "$python" -m pytest "$@"
fi

data='' llp='' unav='' out='' seeds=1 preset='' features='' device='' fresh='' fetch='' fast='' sweep='' field='' extra=()
own='' videos='' segments='' windows='' accept='' missing='' longest='' retry=''
teacher='' clip_weights='' clap_weights='' dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
        --fresh | --fetch | --fast | --sweep | --field | --dry-run | --windows | --retry)
            name=${1#--}
            printf -v "${name/-/_}" yes; shift ;;
        -h | --help) usage; exit 0 ;;
        --) shift; extra=("$@"); break ;;
        --data | --llp | --unav | --out | --seeds | --preset | --features | --device | \
            --own | --videos | --segments | --accept | --missing | --longest | --teacher | --clip-weights | --clap-weights)
            [ -n "${2:-}" ] || die "$1 needs a value"
            name=${1#--}
            printf -v "${name/-/_}" %s "$2"; shift 2 ;;
        *) die "unknown option $1$(usage | grep -oE -- '--[a-z-]+' | python3 -c '
import difflib, sys
meant = difflib.get_close_matches(sys.argv[1], sys.stdin.read().split(), 1)
print(f"; did you mean {meant[0]}?" if meant else "; bash run_all.sh --help lists them")' "$1")" ;;
    esac
done
[ -z "$fetch" ] || [ -n "$data" ] || die "--fetch needs --data DIR: where to put the files"
[ -z "$data" ] || [ -z "$llp$unav" ] || die "--data brings its own annotations: leave out --llp and --unav"
for_own='--videos, --segments, --windows, --accept, --missing, --longest, --retry, --teacher, --clip-weights, --clap-weights, --dry-run'
[ -n "$own" ] || [ -z "$videos$segments$windows$accept$missing$longest$retry$teacher$clip_weights$clap_weights$dry_run" ] ||
    die "these go with --own DIR: $for_own"
if [ -n "$own" ]; then
    out=${out:-runs/own} preset=${preset:-paper}
    [ -z "$data$llp$unav$fetch$sweep$field$features" ] && [ "$seeds" = 1 ] ||
        die "--own goes with $for_own, --out, --preset, --device, --fast and --fresh"
    [ -e "$own/labels.csv" ] ||
        die "$own/labels.csv: no such file; \`python features.py template ${videos:-CLIPS} $own\` writes one to fill in"
    for file in ${videos:+"$videos"} ${teacher:+"$teacher"}; do [ -e "$file" ] || die "$file: no such file or folder"; done
    if [ -n "$dry_run" ]; then clip_weights=${clip_weights:-random} clap_weights=${clap_weights:-random}; fi
elif [ -n "$data" ]; then
    out=${out:-runs/paper} preset=${preset:-paper}
elif [ -n "$llp$unav" ]; then
    out=${out:-runs/real}
else
    out=${out:-runs/demo}
fi
[[ $seeds =~ ^[1-9][0-9]*$ ]] || die "--seeds $seeds: a number from 1 on"
case ${preset:-demo} in demo | paper) ;; *) die "--preset $preset: demo or paper" ;; esac
case $features in '' | base | clip_clap) ;; *) die "--features $features: base or clip_clap" ;; esac
case $out in *[$'\t\n']*) die "--out: a tab or a line break in the name of a folder" ;; esac
train_options=(--preset "${preset:-demo}" ${device:+--device "$device"} ${fast:+--fast} ${extra[@]+"${extra[@]}"})
if [ -n "$own" ]; then setup onnx,features "$needs av pebble open_clip laion_clap"; else setup onnx "$needs"; fi
check() { "$python" -c 'import sys; from train.cli import check; check(sys.argv[1:])' "$@"; } # before any work
last=ablate # of the stages that get these options, the one that takes the fewest
if [ -n "$own" ]; then last=own; fi
if [ ${#extra[@]} -gt 0 ]; then check $last DATA OUT "${train_options[@]}"; fi
if [ -n "$teacher" ]; then check label DATA OUT --teacher "$teacher" ${dry_run:+--dry-run}; fi
mkdir -p "$out"
exec 9<"$out" # held by this script and its stages, for as long as one of them runs
"$python" -c 'import sys; from train.manifest import begin; begin(9, sys.argv[1], bool(sys.argv[2]))' "$out" "$fresh"
UWAV_HELD=$(cd "$out" && pwd -P)
export UWAV_HELD

# ---- the stages ----

# stages.tsv gets a line for every stage that ran: date, seconds, outcome, title, commit, machine, command. The outcome
# is `new` if the stage made results, `kept` if it found them there; only the former tells what the results cost.
commit=$(if [ -e .git ]; then git rev-parse --short HEAD; fi 2>/dev/null || true)
if [ -n "$commit" ] && ! git diff --quiet HEAD; then commit="$commit and local changes"; fi
machine=$("$python" -c 'import importlib.metadata, os, platform
print("%s %s, %s CPU cores, Python %s, PyTorch %s" % (platform.system(), platform.machine(), os.cpu_count(),
      platform.python_version(), importlib.metadata.version("torch")))')
if [ "$device" != cpu ] && command -v nvidia-smi >/dev/null; then
    machine="$machine, $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 || true)"
fi
title=''

record() { # record OUTCOME of the stage $title
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date '+%Y-%m-%d %H:%M')" $((SECONDS - started)) "$1" "$title" \
        "${commit:-unknown}" "$machine" "${called//$'\t'/ }" >>"$out/stages.tsv"
    title=''
    rm -f "$out/.started"
}
trap '[ -z "$title" ] || record interrupted; kill $(jobs -p) 2>/dev/null || true' EXIT

stage() { # stage TITLE COMMAND...
    title=$1 started=$SECONDS
    number=$((${number:-0} + 1))
    printf '\n== %d. %s\n   %s\n' "$number" "$title" "${*:2}"
    : >"$out/.started"
    "${@:2}"
    echo "   done in $((SECONDS - started)) s"
    if [ -n "$(find "$out" ${own:+"$own"} -newer "$out/.started" \( -name '*.pt' -o -name 'labels_*.npz' \
        -o -name index.json -o -name bundle.json -o -name '*.npy' \) -print -quit)" ]; then record new; else record kept; fi
}

packed=$out/data seed=$out/seed0

if [ -n "$own" ]; then
    weights=(--clip-weights "${clip_weights:-openai}" --clap-weights "${clap_weights:-630k-audioset-best}")
    on=(${device:+--device "$device"})
    seconds=(--segments "${segments:-10}")
    lenient=(${missing:+--missing "$missing"} ${longest:+--longest "$longest"})
    if [ -n "$videos" ]; then
        stage "Check tables and clips, before any of them is encoded" "$python" features.py check "$own" --videos "$videos" \
            "${seconds[@]}" ${windows:+--windows} ${accept:+--accept "$accept"} ${lenient[@]+"${lenient[@]}"}
    fi
    stage "Text: the names of the classes as CLIP and CLAP read them" \
        "$python" features.py text "$own" "$own" "${weights[@]}" ${on[@]+"${on[@]}"}
    if [ -n "$videos" ]; then
        if [ -n "$windows" ]; then seconds=(); fi # of the whole clip
        stage "Extract: every second of a clip as CLIP and CLAP see and hear it" "$python" features.py extract "$videos" \
            "$own" ${seconds[@]+"${seconds[@]}"} ${lenient[@]+"${lenient[@]}"} ${retry:+--retry} "${weights[@]}" ${on[@]+"${on[@]}"}
    fi
    stage "Pack features and labels into arrays" "$python" features.py pack "$own" "$packed" --missing skip \
        ${windows:+--windows "${segments:-10}"}
    stage "Pseudo-labels, the parser (Eq. 4-9), and its scores if any clip is annotated" "$python" uwav.py own "$packed" "$seed" \
        ${teacher:+--teacher "$teacher"} ${dry_run:+--dry-run} "${train_options[@]}"
    stage "Export the parser and its encoders to ONNX, every file checked against PyTorch" \
        "$python" export_onnx.py "$out" "$out/bundle" "${weights[@]}"
    stage "Report: pictures and report.html" "$python" report.py "$out"
    echo
    echo "Everything is in $out; all of it took $SECONDS s. Open $out/report.html in a browser. To parse a new video:"
    echo "    $python parse.py VIDEO --bundle $out/bundle --csv events.csv"
    exit
fi

if [ -n "$fetch" ]; then
    stage "Fetch the published annotations and features" "$python" features.py fetch "$data"
fi
if [ -n "$data" ]; then
    stage "Pack the feature files into arrays" "$python" features.py pack "$data" "$packed"
else
    stage "Make the demo world: invented CLIP and CLAP embeddings" \
        "$python" features.py demo "$packed" ${llp:+--llp "$llp"} ${unav:+--unav "$unav"}
fi
if [ -z "$features" ]; then
    if [ -e "$packed/llp/train/res152.npy" ]; then first=base; else first=clip_clap; fi
else
    first=$features
fi
stage "Pre-train the teacher on UnAV (Eq. 2-3)" \
    "$python" uwav.py pretrain "$packed" "$seed" "${train_options[@]}"
stage "Pseudo-labels (Eq. 4), then the HAN (Eq. 5-9): every row of the paper's ablation, seeds: $seeds" \
    "$python" uwav.py ablate "$packed" "$out" --seeds "$seeds" ${features:+--features "$features"} \
    ${sweep:+--sweep} "${train_options[@]}"
if [ -n "$field" ]; then
    stage "The systems that the paper compares itself with, each as published, on the same data" \
        "$python" uwav.py field "$packed" "$out" --seeds "$seeds" --features "$first" "${train_options[@]}"
fi
"$python" report.py "$out" & # beside the export: neither uses more than a core for long
report=$!
stage "Export the parser to ONNX, every file checked against PyTorch" \
    "$python" export_onnx.py "$out" "$out/bundle" --features "$first"
stage "Report: pictures and report.html (python report.py $out, begun beside the export)" wait "$report"
echo
echo "Everything is in $out; all of it took $SECONDS s. Open $out/report.html in a browser."

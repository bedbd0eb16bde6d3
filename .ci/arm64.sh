#!/usr/bin/env bash
# bash .ci/arm64.sh DIR: a Python of ARM64 with numpy, onnxruntime, av and pillow in DIR, which qemu-aarch64 runs: DIR/python CPU SCRIPT.
# Of Debian's packages and of wheels; needs apt-get, dpkg and a network.
set -euo pipefail
mkdir -p "$1/root" "$1/site" "$1/get"
dir=$(cd "$1" && pwd)
dpkg --add-architecture arm64
apt-get update -qq
version=$(apt-cache depends python3 | sed -n 's/.*Depends: \(python3\.[0-9]*\)$/\1/p' | head -1)
cd "$dir/get"
wanted=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    "$version:arm64" libstdc++6:arm64 | grep -E '^[a-z].*:arm64$' | sort -u)
for package in $wanted; do # shellcheck disable=SC2086
    apt-get download -qq -o APT::Sandbox::User=root "$package" 2>/dev/null || echo "without $package"
done
for deb in *.deb; do dpkg -x "$deb" "$dir/root"; done
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "${version#python}" -d . \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    numpy onnxruntime flatbuffers protobuf packaging av pillow
for wheel in *.whl; do python3 -m zipfile -e "$wheel" "$dir/site"; done
# onnxruntime asks Linux what the processor can do, and wants an answer of ARM's that is no more than qemu has.
mkdir -p "$dir/root/proc" "$dir/root/sys/devices/system/cpu"
echo 0 | tee "$dir/root/sys/devices/system/cpu/possible" > "$dir/root/sys/devices/system/cpu/present"
cat > "$dir/python" <<END
#!/usr/bin/env bash
case \$1 in
    cortex-a72) part=0xd08 features="fp asimd evtstrm crc32 cpuid" ;;
    neoverse-n1) part=0xd0c features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs" ;;
esac
printf 'processor\t: 0\nBogoMIPS\t: 100.00\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 1\n\n' \
    "\$features" "\$part" > "$dir/root/proc/cpuinfo"
PYTHONPATH="$dir/site" exec qemu-aarch64 -L "$dir/root" -cpu "\$1" "$dir/root/usr/bin/$version" "\${@:2}"
END
chmod +x "$dir/python"
"$dir/python" neoverse-n1 -c "import onnxruntime, platform; print(platform.machine(), 'with onnxruntime', onnxruntime.__version__)"

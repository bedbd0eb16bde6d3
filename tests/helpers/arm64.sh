#!/usr/bin/env bash
# bash tests/helpers/arm64.sh DIR: Python 3.11 for ARM64 with numpy and onnxruntime, as DIR/python CPU SCRIPT [ARGUMENT...].
# CPU: cortex-a72 (Raspberry Pi 4) or neoverse-n1 (Graviton 2). On Debian for x86-64, as root, with qemu-user; 40 MB of downloads.
set -euo pipefail
mkdir -p "$1" && cd "$1" && here=$PWD
mkdir -p packages wheels site system/proc system/sys/devices/system/cpu
dpkg --add-architecture arm64 && apt-get update -qq
for name in libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1 libtinfo6 \
    libncursesw6 libreadline8 python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib; do
    (cd packages && apt-get download -qq -o APT::Sandbox::User=root "$name:arm64")
done
for package in packages/*.deb; do dpkg -x "$package" system; done
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 -d wheels onnxruntime numpy flatbuffers protobuf packaging
for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" site; done
# onnxruntime reads what the processor can do from the kernel, and believes more than qemu's processor has.
echo 0-1 | tee system/sys/devices/system/cpu/possible >system/sys/devices/system/cpu/present
describe() {
    for core in 0 1; do
        printf 'processor\t: %d\nBogoMIPS\t: 100.00\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' "$core" "$2"
        printf 'CPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$3"
    done >"$1.cpuinfo"
}
describe cortex-a72 "fp asimd evtstrm crc32 cpuid" 0xd08
describe neoverse-n1 "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs" 0xd0c
cat >python <<R
#!/usr/bin/env bash
cpu=\$1 && shift && cp "$here/\$cpu.cpuinfo" "$here/system/proc/cpuinfo" # so one processor at a time
PYTHONPATH="$here/site\${PYTHONPATH:+:\$PYTHONPATH}" exec qemu-aarch64 -L "$here/system" -cpu "\$cpu" "$here/system/usr/bin/python3.11" "\$@"
R
chmod +x python && ./python neoverse-n1 -c 'import onnxruntime'

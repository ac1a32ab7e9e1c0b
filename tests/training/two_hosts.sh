#!/bin/bash
# Trains under ZeRO-2 on two "hosts": network namespaces of this machine, joined by a pair of virtual Ethernet devices,
# with a torchrun agent in each. Needs root (Linux). The hosts share the file system and nothing of the network.
#
#     bash tests/training/two_hosts.sh OUT [ENGINE]        PYTHON=... to choose the interpreter
#
# ENGINE and what is written to OUT: see ranks.py; compare with `python ranks.py OUT 2 one --grid`.
set -e
out=$1 engine=${2:-zero2} python=${PYTHON:-python} here=$(cd "$(dirname "$0")" && pwd)
a=ib-a-$$ b=ib-b-$$
trap 'ip netns del $a 2>/dev/null; ip netns del $b 2>/dev/null' EXIT
ip netns add "$a"
ip netns add "$b"
ip link add veth0 netns "$a" type veth peer name veth0 netns "$b"
ip -n "$a" addr add 10.77.0.1/24 dev veth0
ip -n "$b" addr add 10.77.0.2/24 dev veth0
for host in "$a" "$b"; do
    ip -n "$host" link set lo up
    ip -n "$host" link set veth0 up
done
launch() { # host, its address, whether the rendezvous is there (which torchrun would tell by the host's name)
    ip netns exec "$1" env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=veth0 \
        "$python" -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --rdzv_id two-hosts \
        --rdzv_backend c10d --rdzv_endpoint 10.77.0.1:29500 --rdzv_conf "is_host=$3" --local_addr "$2" \
        "$here/ranks.py" "$out" 2 "$engine" --grid
}
mkdir -p "$out"
launch "$a" 10.77.0.1 1 &
first=$!
launch "$b" 10.77.0.2 0 || { kill $first; exit 1; }
wait $first
echo "traffic of the second host: $(ip -n "$b" -s link show veth0 | awk '/RX/ {getline; print $1}') bytes received"

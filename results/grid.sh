#!/bin/sh
# The grid of README.md, one seed after the other; stop and start it at will. Argument: trainings at a time.
study() {
  spikedim sweep --study timesteps --model spikformer_nano,qkformer_nano,spikingresformer_nano \
    -T 1,2,3,4,6,8 --outputs-T 4,8 --output-samples 250 --image-size 8 --epochs 5 --train-samples 800 \
    --grid v_th=0.5 --training lr=0.02 --training warmup_epochs=0.5 --device cpu \
    --workers "${workers:-1}" --seeds "$seed," "$@"
}
workers=$1
for seed in 0 1 2; do
  study --data digits,fashion_mnist --repool 1000 --test-samples 1000 --out "runs/grid-a-$seed"
  study --data cifar10 --classes 4 --repool 1000 --test-samples 1000 --out "runs/grid-b-$seed"
  study --data cifar100 --classes 10 --repool 500 --test-samples 500 --out "runs/grid-c-$seed"
done

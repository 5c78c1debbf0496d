#!/bin/sh
# The grids of README.md; stop and start at will. Arguments: which grid, trainings at a time.
# main and dimension on a GPU: device=cuda sh results/grid.sh main 11
study() {
  spikedim sweep --study timesteps -T 1,2,3,4,6,8 --outputs-T 4,8 --output-samples 250 \
    --grid v_th=0.5 --training lr=0.02 --training warmup_epochs=0.5 \
    --device "${device:-cpu}" --workers "${workers:-1}" "$@"
}
larger() {
  study --model spikformer_nano,qkformer_nano,spikingresformer_nano,spike_driven_nano,spike_driven_v2_nano \
    --training batch_size=128 --training validation=0 "$@"
}
smaller() {
  study --model spikformer_nano,qkformer_nano,spikingresformer_nano --image-size 8 \
    --epochs 5 --train-samples 800 "$@"
}
grid=$1 workers=$2
for seed in 0 1 2; do
  case $grid in
    main)
      larger --data fashion_mnist,cifar10,cifar100 --image-size 16 --epochs 10 --train-samples 5000 \
        --repool 3000 --test-samples 3000 --seeds "$seed," --out "runs/main-a-$seed"
      larger --data digits --epochs 30 --train-samples 1000 \
        --repool 797 --test-samples 797 --seeds "$seed," --out "runs/main-b-$seed" ;;
    small)
      smaller --data digits,fashion_mnist --repool 1000 --test-samples 1000 --seeds "$seed," --out "runs/small-a-$seed"
      smaller --data cifar10 --classes 4 --repool 1000 --test-samples 1000 --seeds "$seed," --out "runs/small-b-$seed"
      smaller --data cifar100 --classes 10 --repool 500 --test-samples 500 --seeds "$seed," --out "runs/small-c-$seed" ;;
    dimension)
      spikedim validate --run-dimension runs/dimension --device "${device:-cpu}" --workers "${workers:-1}"
      break ;;
    *) echo "usage: sh results/grid.sh main|small|dimension [trainings at a time]" >&2; exit 2 ;;
  esac
done

#!/usr/bin/env bash
# The runs behind docs/robustness.md: bash benchmarks/robustness.sh DATA ENCODER OUT
#
# Trains every objective with every seed, evaluates and attacks each, and the same for question answering, in OUT; then
# benchmarks/report/robustness.py OUT collects the results and writes the page's tables. What OUT holds already is kept, so it
# can be stopped and called again. OBJECTIVES, SEEDS and QA (objectives of question answering) choose a part, so that
# several calls can share the work; OPTIONS are further arguments of every training run.
set -euo pipefail
[ $# = 3 ] || { sed -n '2,7p' "$0" | cut -c3-; exit 2; }
data=$1 encoder=$2 out=$3
: "${OBJECTIVES=vanilla freelb infobert smart r3f}" "${SEEDS=42 1 2}" "${QA=vanilla freelb infobert}" "${OPTIONS=--use_cpu True}"

infobert() { "${PYTHON:-python}" -m infobert_fast.cli "$@"; }
done_already() { [ -e "$1" ] && echo "$1 is there"; }

train() { # FOLDER ARGUMENTS
    # The trainer writes its state when everything else is written.
    done_already "$1/trainer_state.json" ||
        infobert train "${@:2}" --model_name_or_path "$encoder" --bf16 True --save_strategy no --report_to none $OPTIONS \
            --output_dir "$1"
}

for seed in $SEEDS; do
    for objective in $OBJECTIVES; do
        run=$out/nli/$objective.$seed
        # The adversary is a tenth of the published one: docs/robustness.md says why.
        case $objective in freelb | infobert) size="--adv_lr 4e-3 --adv_init_mag 8e-3" ;; *) size="" ;; esac
        train "$run" examples/nli.yaml --objective "$objective" $size --seed "$seed" --train_limit 4000 \
            --train_data "$data/snli/train_sub20k.jsonl" "$data/mnli/train_sub12k.jsonl" \
            --eval_data "$data/cad_nli/original_dev.jsonl" --eval_strategy no
        done_already "$run.json" || infobert evaluate "$run" --bf16 --output "$run.json" --data \
            "$data/snli/test.jsonl" "$data/mnli/dev_matched.jsonl" "$data"/anli/test_r{1,2,3}.jsonl \
            "$data"/cad_nli/{original,revised_hypothesis,revised_premise}_test.jsonl "$data/advglue/dev.json#mnli"
        for limit in any similar; do
            attacked=$out/attack/$objective.$seed.$limit
            [ $limit = similar ] && judge="--similarity_model $encoder" || judge=""
            done_already "$attacked/report.json" || infobert attack "$run" --bf16 $judge --output "$attacked" \
                --neighbors "$data/synonyms/counterfitted_neighbors.json" --data \
                "snli=$data/textfooler_targets/snli.jsonl" "mnli=$data/textfooler_targets/mnli_matched.jsonl"
        done
    done
done

for objective in $QA; do
    run=$out/qa/$objective
    case $objective in vanilla) adversary="" ;; *) adversary="--adv_steps 2 --adv_lr 2e-2 --adv_init_mag 2e-2 --adv_max_norm 4e-2" ;; esac
    case $objective in infobert) weights="--version 6 --alpha 5e-3 --beta 5e-5 --cl 0.75 --ch 0.95" ;; *) weights="" ;; esac
    train "$run" --task qa --objective "$objective" $adversary $weights --seed 42 \
        --train_data "$data/squad/train-v1.1.partial.json" --max_length 256 --doc_stride 64 --num_train_epochs 1 \
        --per_device_train_batch_size 16 --learning_rate 1e-4 --warmup_steps 0.0667 --weight_decay 0 --max_grad_norm 1 \
        --train_sampling_strategy group_by_length --logging_steps 25
    done_already "$run.json" || infobert evaluate "$run" --suite qa --data_dir "$data" --max_length 256 --doc_stride 64 \
        --bf16 --output "$run.json"
done

"""Command lines, valid and invalid: their exit status, and part of their output.

Each runs in this process, on a tiny network and small data. None may end in a
traceback, or take long. Braces stand for paths that the test makes: `{images}` is a
folder of images, `{run}` a finished run, `{empty}` an empty folder, `{file}` a file.
"""

import shlex
import time

import pytest

from train import cli

from .tiny_cnn import TinyCNN

TINY = "--batch-size 16 --epochs 1 --parallel jit --runs-dir runs"

# Command line, exit status, and part of the output or the error.
HELP = [
    ("--help", 0, "run"),
    ("-h", 0, "robustness"),
    ("run --help", 0, "--learning-rate"),
    ("eval --help", 0, "--checkpoint"),
    ("benchmark --help", 0, "--image-size"),
    ("prepare --help", 0, "imagenet2012"),
    ("table --help", 0, "--dry-run"),
    ("compare --help", 0, "--controls"),
    ("sweep --help", 0, "--learning-rates"),
    ("robustness --help", 0, "--per-decade"),
    ("table 3 --dry-run", 0, "92.57 ± 0.11"),
    ("table 4 --dry-run", 0, "92.25 ± 0.26"),
    ("table 5 --dry-run", 0, "mobilenet_v3_large stem=cifar"),
    ("table 6 --dry-run", 0, "cifar10, 7 seeds"),
    ("table 7 --dry-run", 0, "without batch norm"),
    ("table 8 --dry-run", 0, "layer_norm=False"),
    ("table 9 --dry-run", 0, "78.47 ± 0.16"),
    ("table 10 --dry-run", 0, "imagenet2012, 3 seeds"),
    ("table 6 --dry-run --epochs 1", 0, "constant"),
    ("table 6 --dry-run --epochs 1000000", 0, "x0.2 after epochs 395000"),
    ("table 6 --dry-run --seeds 1", 0, "cifar10, 1 seed."),
    ("table 6 --dry-run --controls", 0, "+ SGD at INSGD's effective rate"),
    ("table 6 --dry-run --dataset folder:/nowhere", 0, "folder:/nowhere, 7 seeds"),
    (
        "table 6 --dry-run --dataset digits",
        0,
        "Trained on digits instead of the paper's",
    ),
    ("table 6 --dry-run --epochs 100000000", 2, "--epochs must be at"),
]
PARSER = [
    ("nonsense", 2, "Available subcommands"),
    ("run extra", 2, "extra"),
    ("eval", 2, "Missing"),
    ("eval a b", 2, "b"),
    ("table", 2, "Missing"),
    ("table 2 --dry-run", 2, "invalid choice"),
    ("table 99 --dry-run", 2, "invalid choice"),
    ("table six", 2, "invalid choice"),
    ("table 6 --epochs 1.5", 2, "--epochs"),
    ("prepare", 2, "Missing"),
    ("prepare digits", 2, "digits"),
    ("--optimiser sgd", 2, "--optimizer"),
    ("--epoch 3", 2, "--epochs"),
    ("--lr 0.1", 2, "run has no option --lr. Did you mean --learning-rate?"),
    ("--wd 0.1 --lr 3", 2, "--wd. Did you mean --weight-decay?"),
    ("run --learningrate=3", 2, "--learningrate. Did you mean --learning-rate?"),
    ("-lr 3", 2, "has no option -lr. Did you mean --learning-rate?"),
    ("--batch 8", 2, "Did you mean --batch-norm or --batch-size?"),
    ("--no-batchnorm", 2, "Did you mean --no-batch-norm?"),
    ("--seeds 3", 2, "Did you mean --seed? --seeds is an option of table, compare"),
    ("-seeds=3", 2, "no option -seeds. Did you mean --seed? --seeds is an option of"),
    ("--resume /nowhere --lr 3", 2, "Did you mean --learning-rate?"),
    ("--colour red", 2, "no option --colour. All options: python -m train run --help"),
    ("comapre", 2, "no command 'comapre'. Did you mean compare?"),
    ("compare --lr 3", 2, "--optimizers sgd@0.1 adam@0.001"),
    ("compare --optimizer sgd", 2, "Did you mean --optimizers?"),
    ("sweep --lr 3", 2, "Did you mean --learning-rates?"),
    ("robustness --margins 3", 2, "Did you mean --margin?"),
    ("table --epoch 3", 2, "table has no option --epoch. Did you mean --epochs?"),
    ("eval --check best", 2, "Did you mean --checkpoint?"),
    ("benchmark --model vit", 2, "Did you mean --models?"),
    ("prepare cifar10 --epochs 3", 2, "prepare has no option --epochs."),
    ("--epochs many", 2, "--epochs must be a whole number, got 'many'. All options:"),
    ("--epochs", 2, "--epochs"),
    ("--seed 1.5", 2, "Error: --seed must be a whole number, got '1.5'. All options:"),
    ("--seed x", 2, "--seed must be a whole number, got 'x'. All options:"),
    ("--momentum x", 2, "Error: --momentum must be a number, got 'x'. All options:"),
    ("--learning-rate=fast", 2, "Error: --learning-rate must be a number, got 'fast'"),
    ("--learning-rate fast --resume x", 2, "--learning-rate must be a number, got"),
    ("--image-size 1e2", 2, "Error: --image-size must be a whole number, got '1e2'."),
    ("--schedule steps --milestones 5 x", 2, "must be a whole number, got 'x'. All"),
    ("sweep --learning-rates 1 x", 2, "--learning-rates must be a number, got 'x'."),
    ("table 6 --seeds x", 2, "Error: --seeds must be a whole number, got 'x'. All"),
    ("compare --processes x", 2, "Error: --processes must be a whole number, got"),
    ("--batch-norm=yes", 2, "--batch-norm takes no value, got 'yes': write --batch-no"),
    ("--no-batch-norm no", 2, "write --batch-norm or --no-batch-norm. All options"),
    ("table --dry-run 2", 2, "invalid choice"),
    ("--dtype float16", 2, "bfloat16"),
    ("--model nonsense", 2, "custom_cnn"),
    ("--parallel nonsense", 2, "shard_map"),
    ("--schedule nonsense", 2, "cosine"),
    ("--scope nonsense", 2, "kernel"),
    ("--normalizer nonsense", 2, "log1p"),
    ("--conv-covariance nonsense", 2, "kronecker"),
    ("--dataset nonsense", 2, "unknown dataset 'nonsense': expected one of digits"),
    ("--dataset folder:", 2, "unknown dataset 'folder:'"),
    ("--dataset digits:x", 2, "unknown dataset 'digits:x'"),
    ("--optimizer sdg", 2, "unknown optimizer 'sdg'"),
    ("--optimizer sgdd", 2, "MODULE:NAME. Did you mean sgd? All options"),
    ("--optimizer insgd", 2, "Did you mean insgd-l2? All options"),
    ("--optimizer insgdl2", 2, "Did you mean insgd-l2 or"),
    ("--optimizer lms_newton", 2, "Did you mean lms-newton? All options"),
    ("--optimizer AdamW", 2, "Did you mean adamw? All options"),
    ("compare --optimizers insgd@1 sgd", 2, "Did you mean insgd-l2? All options"),
    ("--dataset digit", 2, "MODULE:NAME. Did you mean digits? All options"),
    ("--dataset cifar-10", 2, "Did you mean cifar10"),
    ("table 6 --dataset digitz", 2, "Did you mean digits?"),
    ("--optimizer insgd-l0.5", 2, "unknown optimizer 'insgd-l0.5'"),
    ("--optimizer insgd-lnan", 2, "unknown optimizer 'insgd-lnan'"),
    ("--optimizer insgd-l", 2, "unknown optimizer 'insgd-l'"),
    ("--batch-norm maybe", 2, "maybe"),
    ("benchmark --dtypes float64", 2, "float64"),
    ("benchmark --axis colour", 2, "colour"),
]
NUMBERS = [
    ("--learning-rate -1", 2, "--learning-rate must be at least 0"),
    ("--learning-rate nan", 2, "--learning-rate must be at least 0"),
    ("--learning-rate inf", 2, "--learning-rate must be at most"),
    ("--learning-rate 1e300", 2, "--learning-rate must be at most"),
    ("--momentum 1", 2, "--momentum must be below 1"),
    ("--momentum -0.1", 2, "--momentum must be at least 0"),
    ("--momentum nan", 2, "--momentum must be at"),
    ("--dampening 1.5", 2, "--dampening must be at most 1"),
    ("--dampening -1", 2, "--dampening must be at least 0"),
    ("--label-smoothing 1", 2, "--label-smoothing must be below 1"),
    ("--label-smoothing -0.1", 2, "--label-smoothing must be at least 0"),
    ("--clip-norm 0", 2, "--clip-norm must be above 0"),
    ("--clip-norm -1", 2, "--clip-norm must be at least 0"),
    ("--clip-norm 1 --polyak-factor 1", 2, "both bound the step: use one of them"),
    ("--eps 0", 2, "--eps must be above 0"),
    ("--eps nan", 2, "--eps must be at"),
    ("--power-decay 1", 2, "--power-decay must be below 1"),
    ("--power-decay nan", 2, "--power-decay must be at"),
    ("--conv-input pixel", 2, "feature_map"),
    ("--optimizer lms-newton --covariance-decay 1", 2, "must be below 1"),
    ("--optimizer lms-newton --covariance-max-rows 0", 2, "-max-rows must be at"),
    ("--optimizer lms-newton --covariance-max-dim 0", 2, "-max-dim must be at"),
    ("--optimizer lms-newton --covariance-max-dim 1", 2, "must be at least 2, got 1"),
    ("--weight-decay -1", 2, "--weight-decay must be at"),
    ("--weight-decay nan", 2, "--weight-decay must be at"),
    ("--weight-decay inf", 2, "--weight-decay must be at"),
    ("--polyak-factor -1", 2, "--polyak-factor must be at"),
    ("--polyak-factor nan", 2, "--polyak-factor must be at"),
    ("--polyak-factor inf", 2, "--polyak-factor must be at"),
    ("--optimizer lms-newton --damping -1", 2, "--damping must be at"),
    ("--optimizer lms-newton --damping nan", 2, "--damping must be at"),
    ("--optimizer lms-newton --covariance-every 0", 2, "--covariance-every must be"),
    (
        "--optimizer lms-newton --covariance-every 9999999999",
        2,
        "must be at most 2147483647",
    ),
    ("--epochs 0", 2, "--epochs must be at least 1"),
    ("--epochs -1", 2, "--epochs must be at least 1"),
    ("--epochs 1000001", 2, "at most 1000000"),
    ("--epochs 99999999999999999999", 2, "--epochs must be at"),
    ("--batch-size 0", 2, "--batch-size must be at"),
    ("--batch-size 99999999999999999999", 2, "--batch-size must be at"),
    ("--batch-size 49 --parallel jit", 2, "larger than the 48 training images"),
    ("--batch-size 12 --parallel pmap", 2, "is not divisible by the 8"),
    ("--seed -1", 2, "--seed must be at least 0"),
    ("--seed 4294967296", 2, "--seed must be at"),
    ("--seed 9223372036854775808", 2, "--seed must be at"),
    ("--chunk-steps 0", 2, "--chunk-steps must be at"),
    ("--data-workers -1", 2, "--data-workers must be at"),
    ("--data-workers 1000000", 2, "--data-workers must be at"),
    ("--warmup-epochs -1", 2, "--warmup-epochs must be at"),
    ("--warmup-epochs 1000000000000", 2, "--warmup-epochs must be at"),
    (f"{TINY} --warmup-epochs 1000000 --batch-size 16 --epochs 1000000000", 2, "most"),
    ("--schedule cosine --restart-epochs 0", 2, "--restart-epochs must be at"),
    ("--schedule cosine --restart-epochs 1000000000000", 2, "--restart-epochs must"),
    ("--schedule steps --milestones 5 5", 2, "--milestones must be one or more epochs"),
    ("--schedule steps --milestones 9 5", 2, "--milestones must be one or more epochs"),
    ("--schedule steps --milestones 0 5", 2, "--milestones must be one or more epochs"),
    ("--schedule steps --milestones", 2, "--milestones"),
    ("--schedule steps --milestones 1000000000000", 2, "--milestones must be at most"),
    ("--schedule steps --milestones 2 --warmup-epochs 3", 2, "must not lie in the 3"),
    ("--schedule steps --milestone-factor -1", 2, "--milestone-factor must be"),
    ("--schedule steps --milestone-factor nan", 2, "--milestone-factor must be"),
    ("--connect-timeout 0", 2, "--connect-timeout"),
    ("--num-processes 2", 2, "must be passed together"),
    ("--coordinator x --num-processes 2 --process-id 0", 2, "must be HOST:PORT"),
    ("--coordinator x:99999 --num-processes 2 --process-id 0", 2, "must be HOST:PORT"),
    ("--coordinator x:1 --num-processes 2 --process-id 2", 2, "from 0 to 1"),
]
NETWORKS = [
    ("--model-options width", 2, "--model-options must be NAME=VALUE"),
    ("--model-options =8", 2, "--model-options must be NAME=VALUE"),
    ("--model-options width=", 2, "--model-options must be NAME=VALUE"),
    ("--model resnet20 --model-options width=0", 2, "has no width=0"),
    ("--model resnet20 --model-options width=-1", 2, "has no width=-1"),
    ("--model resnet20 --model-options width=abc", 2, "has no width='abc'"),
    ("--model resnet20 --model-options width=1.5", 2, "has no width=1.5"),
    ("--model resnet20 --model-options width=True", 2, "has no width=True"),
    ("--model resnet20 --model-options width=None", 2, "has no width=None"),
    (
        "--model resnet20 --model-options width=1000000000000000000",
        2,
        "from 1 to 65536",
    ),
    ("--model resnet20 --model-options stage_sizes=3", 2, "has no stage_sizes=3"),
    ("--model resnet20 --model-options stage_sizes=()", 2, "has no stage_sizes=()"),
    ("--model resnet20 --model-options stage_sizes=1x0x1", 2, "has no stage_sizes="),
    ("--model resnet20 --model-options 'stage_sizes=(1,-1)'", 2, "has no stage_sizes="),
    ("--model resnet20 --model-options stage_sizes=axb", 2, "has no stage_sizes='axb'"),
    ("--model resnet20 --model-options shortcut=A", 2, "'projection', 'identity'"),
    ("--model resnet20 --model-options batch_norm=maybe", 2, "choose True or False"),
    ("--model resnet20 --model-options batch_norm=1", 2, "choose True or False"),
    ("--model resnet20 --model-options depth=3", 2, "has no option 'depth'"),
    ("--model resnet20 --model-options wdith=3", 2, "did you mean 'width'"),
    ("--model resnet20 --model-options width=8 width=9", 2, "once, got width twice"),
    (
        "--model resnet20 --model-options dtype=float32",
        2,
        "dtype is not an option here",
    ),
    (
        "--model resnet20 --model-options axis_name=x",
        2,
        "axis_name is not an option here",
    ),
    ("--model resnet20 --model-options num_classes=3", 2, "no option 'num_classes'"),
    ("--model resnet20 --model-options parent=3", 2, "no option 'parent'"),
    ("--no-batch-norm --model-options batch_norm=True", 2, "the same option"),
    ("--model-options dropout=nan", 2, "has no dropout='nan'"),
    ("--model-options dropout=2", 2, "has no dropout=2"),
    ("--model-options dropout=-0.5", 2, "has no dropout=-0.5"),
    ("--model-options dropout=1", 2, "give a rate in [0, 1)"),
    ("--model-options dropout=1e999", 2, "has no dropout=inf"),
    ("--model-options dropout=True", 2, "has no dropout=True"),
    ("--model-options batch_norm=maybe", 2, "choose True or False"),
    ("--model vit --model-options depth=-1", 2, "has no depth=-1"),
    ("--model vit --model-options depth=0", 2, "has no depth=0"),
    ("--model vit --model-options heads=0", 2, "has no heads=0"),
    ("--model vit --model-options patch=0", 2, "has no patch=0"),
    ("--model vit --model-options remat=2", 2, "has no remat=2"),
    ("--model vit --model-options layernorm=False", 2, "no option 'layernorm'"),
    ("--model vit --no-batch-norm", 2, "--no-batch-norm: The network 'vit' has no"),
    ("--model wrn18 --no-batch-norm", 2, "--no-batch-norm: The network 'wrn18' has no"),
    ("--model mobilenet_v3_small --model-options stem=x", 2, "'imagenet', 'cifar'"),
    (
        "--model mobilenet_v3_small --model-options width_mult=0",
        2,
        "has no width_mult=0",
    ),
    (
        "--model mobilenet_v3_small --model-options width_mult=1e300",
        2,
        "width_mult=1e+",
    ),
    ("--model mobilenet_v3_small --model-options blocks=3", 2, "has no blocks=3"),
    ("--model mobilenet_v3_small --model-options 'blocks=((3,16),)'", 2, "sequence of"),
    ("compare --model resnet20 --model-options width=0", 2, "has no width=0"),
    ("sweep --model resnet20 --model-options width=0", 2, "has no width=0"),
    ("robustness --model resnet20 --model-options width=0", 2, "has no width=0"),
]
BENCHMARK = [
    ("benchmark --models nonsense", 2, "'nonsense' is not a network"),
    ("benchmark --models", 2, "--models"),
    ("benchmark --models resnet20:width=0", 2, "has no width=0"),
    ("benchmark --models resnet20:width=-1", 2, "has no width=-1"),
    ("benchmark --models resnet20:width=abc", 2, "has no width='abc'"),
    ("benchmark --models resnet20:stage_sizes=axb", 2, "has no stage_sizes='axb'"),
    ("benchmark --models resnet20:stage_sizes=3", 2, "has no stage_sizes=3"),
    ("benchmark --models resnet20:stage_sizes=1x", 2, "has no stage_sizes='1x'"),
    ("benchmark --models resnet20:width", 2, "must be NAME=VALUE"),
    ("benchmark --models resnet20:dtype=float32", 2, "dtype is not an option here"),
    ("benchmark --models vit:depth=-1", 2, "has no depth=-1"),
    ("benchmark --models vit:nonsense=1", 2, "has no option 'nonsense'"),
    ("benchmark --models vit@0", 2, "expected a batch size after @"),
    ("benchmark --models vit@", 2, "expected a batch size after @"),
    ("benchmark --models vit@x", 2, "expected a batch size after @"),
    ("benchmark --rounds 0", 2, "--rounds must be"),
    ("benchmark --image-size 0", 2, "--image-size must be"),
    ("benchmark --image-size 1000000", 2, "--image-size must be"),
    ("benchmark --batch-sizes 0", 2, "--batch-sizes must all be"),
    ("benchmark --batch-sizes", 2, "--batch-sizes"),
    ("benchmark --values 3", 2, "--values needs --axis"),
    ("benchmark --axis width --values 0", 2, "--values must all be at least 1"),
    ("benchmark --axis width --values 9999999", 2, "has no width=9999999"),
    ("benchmark --axis depth --models custom_cnn", 2, "has no option 'depth'"),
    ("benchmark --output-dir {file}", 2, "{file}"),
    ("benchmark --models custom_cnn@2 --image-size 4 --output-dir b", 2, "8x8 pixels"),
]
WITHOUT_EFFECT = [
    ("--optimizer sgd --scope layer", 2, "--scope applies only to INSGD; it"),
    ("--optimizer sgd --normalizer log1p", 2, "--normalizer applies only to INSGD; it"),
    ("--optimizer sgd --scope layer --normalizer log1p", 2, "no effect"),
    ("--optimizer insgd-as-released --scope layer", 2, "--scope applies only to INSGD"),
    ("--optimizer sgd --damping 2", 2, "--damping applies only to lms-newton"),
    ("--optimizer insgd-l2 --damping 2", 2, "--damping applies only to lms-newton"),
    (
        "--optimizer adam --covariance-every 3",
        2,
        "--covariance-every applies only to lms-newton",
    ),
    (
        "--optimizer sgd --conv-covariance kronecker",
        2,
        "--conv-covariance applies only to lms",
    ),
    ("--optimizer lms-newton --scope layer", 2, "--scope applies only to INSGD"),
    ("--optimizer adam --momentum 0.5", 2, "--momentum applies only to SGD"),
    ("--optimizer adam --polyak-factor 0.3", 2, "--polyak-factor applies only to SGD"),
    ("--optimizer lars --polyak-factor 0.3", 2, "--polyak-factor applies only to SGD"),
    ("--optimizer adam --nesterov", 2, "--nesterov applies only to SGD, LARS"),
    ("--optimizer momo --nesterov", 2, "--nesterov applies only to SGD, LARS"),
    ("--optimizer lars --dampening 0.5", 2, "--dampening applies only to SGD, INSGD"),
    ("--optimizer sgd --eps 0.1", 2, "--eps applies only to INSGD; it"),
    ("--optimizer sgd --power-decay 0.5", 2, "--power-decay applies only to INSGD"),
    (
        "--optimizer lms-newton --conv-input patch",
        2,
        "--conv-input applies only to INSGD",
    ),
    ("--covariance-decay 0.5", 2, "--covariance-decay applies only to lms-newton"),
    ("--covariance-max-rows 5", 2, "--covariance-max-rows applies only to lms-newton"),
    ("--optimizer adamw --covariance-max-dim 5", 2, "applies only to lms-newton"),
    ("--normalizer log1p --eps 0.1", 2, "--eps has no effect with --normalizer log1p"),
    ("--momentum 0 --nesterov", 2, "--nesterov has no effect with --momentum 0"),
    ("--milestones 5 9", 2, "--milestones has no effect with --schedule constant"),
    ("--milestone-factor 0.5", 2, "--milestone-factor has no effect"),
    ("--restart-epochs 10", 2, "--restart-epochs has no effect"),
    ("--schedule steps --restart-epochs 10", 2, "--restart-epochs has no effect"),
    ("--schedule cosine --milestones 5", 2, "--milestones has no effect"),
    ("compare --optimizers sgd adam --scope layer", 2, "no effect on sgd, adam"),
    ("sweep --optimizers sgd --normalizer log1p", 2, "no effect on sgd"),
    ("robustness --optimizers sgd --damping 2", 2, "no effect on sgd"),
    ("compare --optimizers adam --momentum 0.5", 2, "no effect on adam"),
    ("compare --restart-epochs 3", 2, "--restart-epochs has no effect"),
    ("compare --polyak-factor 0.3", 2, "--polyak-factor applies only to SGD"),
    (
        "compare --optimizers sgd adam --polyak-factor 0.3",
        2,
        "no effect with --optimizer adam",
    ),
    (
        "sweep --optimizers sgd adam --polyak-factor 0.3",
        2,
        "no effect with --optimizer adam",
    ),
    ("robustness --polyak-factor 0.3", 2, "no effect with --optimizer adam"),
    (
        "robustness --optimizers sgd lars --polyak-factor 1",
        2,
        "no effect with --optimizer lars",
    ),
]
SERIES = [
    ("compare --optimizers", 2, "--optimizers"),
    ("compare --optimizers sdg", 2, "unknown optimizer 'sdg'"),
    ("compare --optimizers sgd sgd", 2, "contains a duplicate"),
    ("compare --optimizers sgd+layer", 2, "is not a valid optimizer"),
    ("compare --optimizers sgd+", 2, "is not a valid optimizer"),
    ("compare --optimizers insgd-l2+layer+kernel", 2, "is not a valid optimizer"),
    ("compare --optimizers sgd+polyak+polyak2", 2, "is not a valid optimizer"),
    ("compare --optimizers sgd@", 2, "the learning rate after @ must"),
    ("compare --optimizers sgd@nan", 2, "the learning rate after @ must"),
    ("compare --optimizers sgd@0", 2, "the learning rate after @ must"),
    ("compare --optimizers sgd@1e300", 2, "--learning-rate must be at most"),
    ("compare --optimizers adam+polyak", 2, "is not a valid optimizer"),
    ("compare --optimizers sgd+kron", 2, "is not a valid optimizer"),
    ("compare --seeds 0", 2, "--seeds must be from 1"),
    ("compare --seeds -1", 2, "--seeds must be from 1"),
    ("compare --seeds 4294967297", 2, "--seeds must be from 1"),
    ("compare --seeds 100000000", 2, "--seeds must be from 1"),
    ("compare --processes 0 --optimizers sgd", 2, "--processes must be at least 1"),
    ("compare --processes -3 --optimizers sgd", 2, "--processes must be at least 1"),
    ("compare --dataset folder:/nowhere --runs-dir r", 2, "/nowhere does not exist"),
    ("compare --learning-rate 3", 2, "--learning-rate"),
    ("compare --seed 3", 2, "--seed"),
    ("sweep --learning-rates nan", 2, "--learning-rates must be numbers above 0"),
    ("sweep --learning-rates -1", 2, "--learning-rates must be numbers above 0"),
    ("sweep --learning-rates inf", 2, "--learning-rates must be numbers above 0"),
    ("sweep --learning-rates 0", 2, "--learning-rates must be numbers above 0"),
    ("sweep --learning-rates 1e300", 2, "--learning-rates must be numbers above 0"),
    ("sweep --learning-rates 0.1 0 0.3", 2, "--learning-rates must be numbers above 0"),
    ("sweep --learning-rates 0.1 0.1", 2, "--learning-rates contains a duplicate"),
    ("sweep --learning-rates 0.1 1e-1", 2, "--learning-rates contains a duplicate"),
    ("sweep --learning-rates", 2, "--learning-rates"),
    ("sweep --learning-rates x", 2, "--learning-rates"),
    ("sweep --optimizers sgd@0.1", 2, "pass learning rates to --learning-rates"),
    ("sweep --seeds 0", 2, "--seeds must be from 1"),
    ("sweep --seeds 4294967297", 2, "--seeds must be from 1"),
    ("robustness --decades 0", 2, "--decades must be greater than 0"),
    ("robustness --decades -1", 2, "--decades must be greater than 0"),
    ("robustness --decades inf", 2, "--decades must be greater than 0"),
    ("robustness --decades nan", 2, "--decades must be greater than 0"),
    ("robustness --decades 1e4", 2, "--decades must be greater than 0"),
    ("robustness --optimizers sgd@1e30 --decades 40", 2, "exceed the range of float32"),
    (
        "robustness --optimizers sgd@1e-30 --decades 40",
        2,
        "exceed the range of float32",
    ),
    ("robustness --per-decade 0", 2, "--per-decade must be greater than 0"),
    ("robustness --per-decade 100000000", 2, "--per-decade must be greater than 0"),
    ("robustness --gap nan", 2, "--gap must be greater than 0"),
    ("robustness --gap inf", 2, "--gap must be greater than 0"),
    ("robustness --margin inf", 2, "--margin must be greater than 0"),
    ("robustness --margin 0", 2, "--margin must be greater than 0"),
    ("robustness --seeds 4294967297", 2, "--seeds must be from 1"),
    ("table 6 --seeds 0", 2, "--seeds must be at least 1"),
    ("table 6 --seeds 4294967297", 2, "--seeds must be at most 1000"),
    ("table 6 --epochs 0", 2, "--epochs must be at least 1"),
    ("table 6 --data-workers -1", 2, "--data-workers must be at least 0"),
    ("table 6 --dataset nonsense", 2, "unknown dataset 'nonsense'"),
    ("table 6 --dataset digits --processes 0", 2, "--processes must be at least 1"),
]
PLACES = [
    ("eval /nowhere", 2, "is not a run folder"),
    ("eval {empty}", 2, "is not a run folder"),
    ("eval {file}", 2, "is not a run folder"),
    ("--resume /nowhere", 2, "is not a run folder"),
    ("--resume {empty}", 2, "is not a run folder"),
    ("--resume {run} --optimizer sgd", 2, "was started with other options"),
    ("--resume {run} --seed 5", 2, "--seed is 0 in the run, 5 here"),
    ("--resume {run} --run-dir x", 2, "--run-dir is for a new run"),
    ("--resume {run} --epochs 0", 2, "--epochs must be at"),
    ("--run-dir {run} --batch-size 16 --parallel jit", 2, "already exists"),
    ("--run-dir {file} --batch-size 16 --parallel jit", 2, "is a file. Move it away"),
    ("--runs-dir {file} --batch-size 16 --parallel jit", 2, "cannot be created"),
    ("--dataset folder:/nowhere", 2, "/nowhere does not exist"),
    ("--dataset folder:~nobody-by-this-name", 2, "a user who does not exist"),
    ("--dataset folder:{empty}", 2, "has no folder train/"),
    ("--dataset folder:{file}", 2, "is not a folder"),
    ("--dataset folder:{images} --cache-dir {file}", 2, "{file}"),
    ("--dataset folder:{images} --batch-size 7 --cache-dir c", 2, "larger than the 6"),
    ("table 6 --dataset folder:/nowhere --runs-dir r", 2, "/nowhere does not exist"),
    ("prepare cifar10 --nonsense", 2, "--nonsense"),
]
TRAINED = [
    (TINY, 0, "Test accuracy"),
    (f"run {TINY} --seed 4294967295", 0, "Test accuracy"),
    ("eval {run}", 0, "20 test images"),
    ("eval {run} --checkpoint best", 0, "20 test images"),
    ("--resume {run}", 0, "Test accuracy"),
]
# In a list, it is enough that one optimizer has the option: the dataset fails later.
MIXED = [
    (f"{command} --dataset folder:/nowhere --runs-dir r", 2, "/nowhere does not exist")
    for command in (
        "compare --optimizers sgd insgd-l2 --scope layer --normalizer log1p",
        "compare --optimizers adam sgd --momentum 0.5",
        "compare --optimizers sgd insgd-l2 --polyak-factor 0.3",
        "compare --optimizers sgd lms-newton --damping 2 --conv-covariance kronecker",
        "compare --optimizers insgd-l2 insgd-l2+log1p --eps 0.1",
        "compare --optimizers sgd adam --nesterov --dampening 0.9",
        "sweep --scope layer",
        "robustness --scope layer --momentum 0.5",
        "compare --schedule steps --milestones 5 9",
    )
]
ALL = [
    *(HELP + PARSER + NUMBERS + NETWORKS + BENCHMARK),
    *(WITHOUT_EFFECT + SERIES + MIXED + PLACES + TRAINED),
]
_LONGEST_SECONDS = 10


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder for files that all command lines may use."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def places(tmp_path, shared, small_dataset, monkeypatch, request):
    """Makes the paths that braces in a command line stand for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.data.digits.load", lambda: small_dataset)

    def make(line):
        made = {"run": shared / "run"}
        if not line.startswith("benchmark"):
            monkeypatch.setattr("models.create", lambda _, **given: TinyCNN(**given))
        if "{images}" in line:
            made["images"] = request.getfixturevalue("image_folder")
        if "{empty}" in line:
            made["empty"] = tmp_path / "empty"
            made["empty"].mkdir()
        if "{file}" in line:
            made["file"] = tmp_path / "file"
            made["file"].write_text("")
        if "{run}" in line and not made["run"].exists():
            assert cli.main([*shlex.split(TINY), "--run-dir", str(made["run"])]) == 0
        return made

    return make


def test_there_are_many_command_lines_and_no_two_are_equal():
    assert len({line for line, *_ in ALL}) == len(ALL) >= 200


@pytest.mark.parametrize(
    ("line", "status", "words"), ALL, ids=[line for line, *_ in ALL]
)
def test_a_command_line_has_the_expected_status_and_output(
    line, status, words, places, capsys
):
    made = places(line)
    capsys.readouterr()
    # CPU time of this process: the load of others must not fail the test.
    started = time.process_time()
    try:
        got = cli.main(shlex.split(line.format(**made)))
    except SystemExit as stop:
        got = stop.code
    seconds = time.process_time() - started
    printed = capsys.readouterr()
    # The help is wrapped and framed.
    text = " ".join("".join(printed).replace("│", " ").split())
    assert got == status, text
    assert words.format(**made) in text
    assert "Traceback" not in text
    if status == 2:  # The last line says why.
        assert printed.err.splitlines()[-1].startswith("Error: ")
        assert "│" not in printed.err
    assert all(len(row) <= 80 for row in printed.out.splitlines() if "usage:" in row)
    assert seconds < _LONGEST_SECONDS

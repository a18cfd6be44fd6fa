"""What the dashboards show, TensorBoard's custom scalars and W&B's workspace (docs/dashboards.md).

A script passes the sections to `runlog.open_batches`; with keys of its own it passes

    {**SECTIONS, "Mine": {"gain": "mine/gain"}}
"""

# section -> panel -> regular expression of whole keys
SECTIONS = {
    "Returns": {
        "evaluation return": "eval/(task[0-9]+/)?episodic_return",
        "evaluation success rate": "eval/(task[0-9]+/)?success",
        "training return": "charts/episodic_return",
        "sequential tasks: average, forgetting, plasticity": (
            "sequence/(average|forgetting|plasticity)"
        ),
        "accuracy on a task: online, end, test": "charts/(online|end|test)_accuracy",
        "regression error": "(eval|losses)/mse",
    },
    "Value bias": {
        "overestimation: Q minus return": "overestimation/mean",
        "overestimation over max(|return|, 10)": "overestimation/normalised",
        "overestimation: standard deviation over states": "overestimation/std",
        "mean value on the batch": "losses/(q|value)_mean",
        "loss of the values": "losses/(qf|td|value)_loss",
        "Q from dead neurons, live neurons, bias": "q_split/(dead|live|bias)",
    },
    "Network health": {
        "dead share (KDE)": "network/.+/dead_share",
        "dead share of the branches": "network/.+/branch[0-9]+_dead_share",
        "dormant share (ReDo)": "network/.+/dormant_share",
        "dormant share, mean taken off": "network/.+/dormant_share_centred",
        "effective rank (srank)": "network/.+/srank",
        "rank of the tangent kernel": "(network/.+|task_start|task_end)/ntk_srank",
        "feature norm": "network/.+/feature_norm",
        "weight norm, whole network": "network/[^/]+/weight_norm",
        "gradient norm, whole network": "network/[^/]+/gradient_norm",
        "neurons recycled by ReDo": "redo/recycled_share",
    },
    "Activation shapes": {
        "gradient norm of the coefficients": "network/[^/]+/coefficient_gradient_norm",
        "numerator norm": "network/.+/(branch[0-9]+_)?numerator_norm",
        "denominator norm": "network/.+/(branch[0-9]+_)?denominator_norm",
        "constraint scale c": "network/.+/(branch[0-9]+_)?c_min",
        "smallest denominator": "network/.+/(branch[0-9]+_)?q_min",
        "largest output": "network/.+/(branch[0-9]+_)?f_max",
        "pre-activations: 1 % and 99 % quantile": "network/.+/preact_q(01|99)",
    },
    "Throughput": {
        "environment steps per second": "perf/sps",
        "updates per second": "perf/updates_per_second",
    },
}

# section -> title -> key of a picture, which runs draw with their network metrics (plots.draw_run)
IMAGES = {
    "Network health": {
        "densities of 16 neurons": "plots/kde",
        "Q from dead and live neurons (--analyse)": "plots/q_split",
    },
    "Activation shapes": {
        "activation functions": "plots/activations",
        "pre-activations": "plots/preactivations",
    },
}

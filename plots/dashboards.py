"""What the dashboards show: TensorBoard's custom scalars and W&B's workspace (docs/dashboards.md).

A script names the panels that its runs fill; `sections` takes them from the tables below:

    def dashboard(args) -> dict:
        panels = ["evaluation return", "mean value on the batch"]
        return plots.dashboards.sections(panels, networks=("actor", "qf1", "qf2"), last_layer="fc2")

and passes them to `runlog.open_batches`. To add a panel of its own, it adds an entry to the result.
"""

from collections.abc import Sequence

Panels = dict[str, str | tuple[str, ...]]  # title -> regular expressions of whole keys

# section -> panel -> keys that belong to no layer; a script names the panels that it fills
PANELS = {
    "Returns": {
        "evaluation return": "eval/episodic_return",
        "evaluation success rate": "eval/success",
        "training return": "charts/episodic_return",
        "evaluation return of each task": "eval/task[0-9]+/episodic_return",
        "evaluation success rate of each task": "eval/task[0-9]+/success",
        "sequential tasks": ("sequence/average", "sequence/forgetting", "sequence/plasticity"),
        "accuracy on a task": (
            "charts/online_accuracy",
            "charts/end_accuracy",
            "charts/test_accuracy",
        ),
        "mean squared error": ("eval/mse", "losses/mse"),
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
        "weight norm of each network": "network/[^/]+/weight_norm",
        "gradient norm of each network": "network/[^/]+/gradient_norm",
        "rank of the tangent kernel": "(network/[^/]+|task_start|task_end)/ntk_srank",
        "neurons recycled by ReDo": "redo/recycled_share",
    },
    "Activation shapes": {
        "gradient norm of the coefficients": "network/[^/]+/coefficient_gradient_norm",
    },
    "Throughput": {
        "environment steps per second": "perf/sps",
        "updates per second": "perf/updates_per_second",
    },
}

# section -> panel -> keys within a layer: a panel for each network
LAYER_PANELS = {
    "Network health": {
        "dead neurons (KDE)": "dead_share",
        "dead neurons of the branches": "branch[0-9]+_dead_share",
        "effective rank (srank)": "srank",
        "dormant neurons (ReDo)": "dormant_share",
        "dormant neurons, mean taken off": "dormant_share_centred",
        "feature norm": "feature_norm",
    },
    "Activation shapes": {
        "pre-activations: 1 % and 99 % quantile": "preact_q(01|99)",
        "largest output": "(branch[0-9]+_)?f_max",
        "numerator norm": "(branch[0-9]+_)?numerator_norm",
        "denominator norm": "(branch[0-9]+_)?denominator_norm",
        "constraint scale c": "(branch[0-9]+_)?c_min",
        "smallest denominator": "(branch[0-9]+_)?q_min",
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
# section -> title -> key of a video
VIDEOS = {"Returns": {"an episode (--capture-video)": "videos/episode"}}


def sections(
    panels: Sequence[str], networks: Sequence[str] = (), last_layer: str = "fc1"
) -> dict[str, Panels]:
    """Section -> panel -> keys: the named panels of PANELS, and for each network those of
    LAYER_PANELS, first for its last hidden layer (such as "fc2"), then, in separate sections, for
    the layers before it. Raises ValueError: PANELS has no such panel.

    >>> sections(["weight norm of each network"], ["q"])["Network health"]["feature norm: q, fc1"]
    'network/q/fc1/feature_norm'
    """
    unknown = {*panels}
    for section_panels in PANELS.values():
        unknown -= {*section_panels}
    if unknown:
        raise ValueError(f"no panel is called {', '.join(sorted(unknown))}")
    found = {}
    for section, known in PANELS.items():
        layer_panels = LAYER_PANELS.get(section, {})
        found[section] = _layer_panels(layer_panels, networks, last_layer, last_layer)
        found[section] |= {title: keys for title, keys in known.items() if title in panels}
        earlier = _layer_panels(layer_panels, networks, _before(last_layer), f"before {last_layer}")
        found[f"{section}, earlier layers"] = earlier
    return {section: section_panels for section, section_panels in found.items() if section_panels}


def _layer_panels(panels: Panels, networks: Sequence[str], layers: str, name: str) -> Panels:
    """Each panel once for each network, side by side. layers: a regular expression."""
    found = {}
    for title, keys in panels.items():
        for network in networks:
            found[f"{title}: {network}, {name}"] = f"network/{network}/{layers}/{keys}"
    return found


def _before(last_layer: str) -> str:
    """The layers before "fc3" as a regular expression: (conv[0-9]+|fc1|fc2)."""
    number = int(last_layer.removeprefix("fc"))
    names = [f"fc{i}" for i in range(1, number)]
    return f"({'|'.join(['conv[0-9]+', *names])})"


def merged(layouts: Sequence[dict[str, Panels]]) -> dict[str, Panels]:
    """The sections of several scripts as one: each section, and each panel in it, once."""
    found = {}
    for layout in layouts:
        for section, panels in layout.items():
            found[section] = found.get(section, {}) | panels
    order = {section: i for i, section in enumerate(PANELS)}
    names = sorted(found, key=lambda name: order.get(name.partition(",")[0], len(order)))
    return {name: found[name] for name in names}

"""One file a plot; importing the package registers them all. Beside each figure lies a CSV of what it shows."""

import importlib
import pkgutil

from bench.reports.plots.registry import PLOTS, Plot, plot, write_plots

__all__ = ["PLOTS", "Plot", "plot", "write_plots"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

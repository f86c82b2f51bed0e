"""One command's trials: resumed, forecast, executed, launched elsewhere, shown while they run."""

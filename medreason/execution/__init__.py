"""From a configuration to a finished run folder: request, launch, worker, supervision."""

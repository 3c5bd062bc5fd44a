"""Why a job of a sweep does nothing. Apart, so that the command line knows them without numpy."""


class NoDataError(ValueError):
    """A cell without data, or with too little: a sweep passes over it and says why."""


class BusyError(ValueError):
    """Another process works on this run: a sweep leaves it to that one."""

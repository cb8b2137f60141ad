"""The way to a Ray cluster that exists already: `pip install 'cascade-ranking[ray]'`, on every machine of it.

Ray itself is taken from here, so that where it is missing whoever wants it says so in the same words.
"""

try:
    import ray
except ModuleNotFoundError as error:
    raise ValueError("engine: 'ray' given, but Ray is not installed: pip install 'cascade-ranking[ray]'") from error

__all__ = ["connect", "ray"]


def connect(address: str) -> None:
    """Join a cluster; a process that is connected already stays where it is.

    Args:
        address: as `ray.init` takes it; `auto` is the cluster that this machine belongs to.

    Raises:
        ValueError: no cluster there.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"ray_address: {address!r} given, but no cluster answers there: {error}") from error

"""Complete networks, without losses."""

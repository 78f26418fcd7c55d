"""HTTP on every peer: the native API, served by aiohttp on loopback."""

"""The desktop app. It is not in this version yet; `mlxldm generate` draws from the command line."""

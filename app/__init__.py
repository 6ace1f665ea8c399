"""The desktop app: one window that makes pictures. Nothing here computes one; `mlxldm worker` does, in a process of its own."""

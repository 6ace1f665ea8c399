"""The desktop app: one window that makes pictures. What computes them is `mlxldm worker`, in a process of its own."""

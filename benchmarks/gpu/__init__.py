"""The parts of `benchmarks/on_gpu.py`: each yields rows until its time is up."""

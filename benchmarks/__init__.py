"""The measuring side: workloads, samples, records, verdicts, reports, and the asv suite.

asv imports every module of this folder when it looks for benchmarks: nothing here may touch a GPU, start work or load
PyTorch at import, and no public name but the suite's may start with time_, track_ or peakmem_.
"""

"""What must hold on an accelerator. Run by path; other tests neither collect nor need it.

    python -m pytest tests/gpu

It needs no installed package, no charts and no network. The environment variable ``TVLARS_DEVICE`` names another device
than "cuda"; on "cpu" all runs but what CUDA alone has, so that the checks themselves are checked in CI.
"""

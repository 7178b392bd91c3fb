"""Other libraries.

`import_hybrid` and `export_lora` read and write checkpoints of peft and AdapterHub;
`interop.laplace` speaks to laplace-torch, `interop.backpack` is another engine.
"""

from posthoc_bhpeft.interop.exporting import export_lora
from posthoc_bhpeft.interop.importing import import_hybrid

__all__ = ["export_lora", "import_hybrid"]

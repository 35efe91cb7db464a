"""Reading trained weights from untrusted files, and writing weights.

What a file is, is decided by its content; its suffix only helps where the content says nothing. No
pickle is ever run: PyTorch files go through the restricted unpickler of ``torch.load(weights_only=True)``.
"""

from csa2glmha.checkpoint.read import STUDENT_FORMAT, Checkpoint, is_student, read_checkpoint
from csa2glmha.checkpoint.write import write_safetensors

__all__ = ["STUDENT_FORMAT", "Checkpoint", "is_student", "read_checkpoint", "write_safetensors"]

"""Post-training of vision-language models for medical visual question answering."""

import sys

from medreason.moved import OldImports

sys.meta_path.append(OldImports)

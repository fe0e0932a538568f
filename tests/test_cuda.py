"Every page also runs when torch's default device is CUDA."
from pathlib import Path
import nbformat
import pytest
import torch
from nbclient import NotebookClient

PAGES = sorted((Path(__file__).parent.parent/'nbs').rglob('[!.]*.ipynb'))
FIRST = "import torch\ntorch.set_default_device('cuda')"

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_page_on_cuda(path):
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if 'nbdev_export' not in c.source]
    nb.cells.insert(0, nbformat.v4.new_code_cell(FIRST))
    where = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=where).execute()

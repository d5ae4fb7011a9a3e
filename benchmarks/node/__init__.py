"""Long checks of the DICOM node against real peers; ``tests/services/test_dicom_node.py`` runs small ones."""

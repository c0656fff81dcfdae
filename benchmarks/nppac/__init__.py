"""N-PPAC: its pathology, locomotion, dexterous hands, speed."""

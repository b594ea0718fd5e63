"""Float models made ternary without training: by a rule, or with thresholds that are searched for."""
